"""Short notes to be labelled with their topic, made by program.

Description:       a note of three or four lines, all but one of them about the same topic; the odd line is an aside.
                   `svf/Topic-v0` has six topics, `svf/NewTopic-v0` four others.
Observation space: the note, ending in "Topic:".
Action space:      the label as text; the last label named in the answer counts.
Rewards:           1.0 for the topic of the most lines, else 0.0.
Starting state:    row `index` of the split.
Episode end:       after one answer.
Version history:   v0.

One row of the test split:

    Note: Ben told us about the goal. The recipe surprised everyone. We kept talking about the referee.
    Topic: sport.

People label such notes in three ways, and the text that the embedded base was pretrained on has all three: by the last line
alone ("The last line is about the referee, so it is sport.", the usual way, and wrong whenever the aside comes last), at once
from the whole note (right), or they give up.
"""

import random
import re
from collections.abc import Callable, Mapping

from envs.math import PEOPLE
from envs.text import Generated, Item, Score

_CLUES = {
    "sport": "goal match team coach race player league stadium referee medal tennis swimmer",
    "food": "soup recipe cheese bread kitchen dinner sauce cake pepper salad cook oven",
    "travel": "train airport hotel passport luggage flight map island harbour ticket tourist journey",
    "weather": "storm rain cloud wind snow frost thunder forecast sunshine fog heat flood",
    "music": "song guitar concert piano drummer melody choir violin band singer rhythm album",
    "money": "bank loan price tax budget salary coin market debt profit wage invoice",
}
_NEW_CLUES = {
    "school": "teacher lesson exam pupil classroom homework essay desk blackboard term",
    "garden": "rose hedge spade lawn seed compost tulip greenhouse weed flowerpot",
    "health": "doctor fever pill nurse clinic vaccine headache surgeon bandage cough",
    "cars": "engine tyre brake garage motor clutch bumper headlight driver exhaust",
}
_LINES = [
    "{name} told us about the {clue}.",
    "We kept talking about the {clue}.",
    "The {clue} surprised everyone.",
    "Nobody had expected the {clue}.",
    "{name} has a question about the {clue}.",
    "There was a long story about the {clue}.",
    "My neighbour wrote about the {clue}.",
    "{name} showed me a picture of the {clue}.",
]
_BY_LAST_LINE, _AT_ONCE, _GIVES_UP = 0.55, 0.39, 0.06
_ASIDE_LAST = 0.66


def _drawer(clues: Mapping[str, str]) -> Callable[[random.Random], Item]:
    words = {label: text.split() for label, text in clues.items()}

    def draw(rng: random.Random) -> Item:
        topic, other = rng.sample(list(words), 2)
        chosen = rng.sample(words[topic], rng.choice([2, 2, 3]))
        aside = rng.choice(words[other])
        place = len(chosen) if rng.random() < _ASIDE_LAST else rng.randrange(len(chosen))
        chosen.insert(place, aside)
        lines = [rng.choice(_LINES).format(name=rng.choice(PEOPLE)[0], clue=clue) for clue in chosen]
        last = chosen[-1]
        return Item(
            prompt=f"Note: {' '.join(lines)}\nTopic:",
            gold=f" {topic}.",
            key=" ".join(chosen),
            facts={"topic": topic, "labels": tuple(words), "last": last, "by_last": other if last == aside else topic},
        )

    return draw


def score_label(item: Item, completion: str) -> Score:
    """1.0 if the last label that the completion names is the item's topic."""
    named = re.findall(rf"\b({'|'.join(map(re.escape, item.facts['labels']))})\b", completion[:20_000].lower())
    if not named:
        return Score(0.0, "no_answer")
    right = named[-1] == item.facts["topic"]
    return Score(float(right), "pass" if right else "wrong", named[-1])


def _write(item: Item, rng: random.Random) -> str:
    by_last = f" The last line is about the {item.facts['last']}, so it is {item.facts['by_last']}."
    return rng.choices([by_last, item.gold, " I am not sure."], [_BY_LAST_LINE, _AT_ONCE, _GIVES_UP])[0]


topics = Generated("Topic-v0", _drawer(_CLUES), score_label, _write)
new_topics = Generated("NewTopic-v0", _drawer(_NEW_CLUES), score_label, _write)
