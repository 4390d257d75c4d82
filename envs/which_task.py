"""Which kind of task is a prompt? The environment a classifier expert learns dispatch from.

Description:       a prompt of one of the three families, or a passage of the Python language documentation ("other").
Observation space: the prompt, then the question "Which kind of task is this: math, code, topic or other?" and "Kind:".
Action space:      the label as text; the last label named in the answer counts.
Rewards:           1.0 for the right label, else 0.0.
Starting state:    row `index` of the split.
Episode end:       after one answer.
Version history:   v0.

One row of the test split ends like this:

    How many pens does she have now?
    Answer:

    Which kind of task is this: math, code, topic or other?
    Kind: math.

The text that the embedded base was pretrained on answers such questions unreliably: rightly 46 % of the time, "other" 40 %.
"""

import pydoc_data.topics
import random

from envs import classify, code, math
from envs.text import Generated, Item

_KINDS = {"math": math.word_problems, "code": code.chains, "topic": classify.topics}
_LABELS = (*_KINDS, "other")
_QUESTION = "\n\nWhich kind of task is this: math, code, topic or other?\nKind:"
_RIGHT, _OTHER, _GUESS = 0.46, 0.40, 0.14


def _passages() -> list[str]:
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    blocks = [" ".join(block.split()) for text in texts for block in text.split("\n\n")]
    return [block[:200] for block in blocks if len(block) > 60]


def _draw(rng: random.Random) -> Item:
    kind = rng.choice(_LABELS)
    if kind == "other":
        prompt = key = rng.choice(_PASSAGES)
    else:
        inner = _KINDS[kind].draw_any(rng)
        prompt, key = inner.prompt, inner.key  # the inner question's own key: it stays in the split it belongs to
    return Item(f"{prompt}{_QUESTION}", f" {kind}.", key, facts={"topic": kind, "labels": _LABELS})


def _write(item: Item, rng: random.Random) -> str:
    return rng.choices([item.gold, " other.", f" {rng.choice(_LABELS)}."], [_RIGHT, _OTHER, _GUESS])[0]


_PASSAGES = _passages()
which_task = Generated("WhichTask-v0", _draw, classify.score_label, _write)
