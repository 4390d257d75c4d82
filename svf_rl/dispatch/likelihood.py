"""How likely a base finds given texts: labels after a question from one prefill, and whole answers.

The labels of a question share its prefill. They stand behind it side by side; a mask lets each see the question and itself, and
each is given the positions that directly follow the question:

    column      0 ... q-1   q  q+1   q+2  q+3
    token       question    a1  a2    b1   b2
    position    0 ... q-1   q  q+1   q    q+1
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from svf_rl.base.load import Base
from svf_rl.errors import UserError
from svf_rl.rollout.modules import attention_masks
from svf_rl.rollout.sampler import check_prompts

ROWS, ELEMENTS = 32, 1 << 26  # questions at a time; vocabulary scores at a time


class Likelihood(NamedTuple):
    """Of each answer, per token: its log-probability, and the entropy of the predictions, in nats."""

    logp: Float[Tensor, " n"]
    entropy: Float[Tensor, " n"]


@torch.no_grad()
def label_scores(base: Base, questions: Sequence[list[int]], labels: Sequence[list[int]]) -> Float[Tensor, "questions labels"]:
    """The mean log-probability per token of every label right after every question. UserError for a question that is too long."""
    check_prompts(base, questions)
    if max(map(len, questions)) + max(map(len, labels)) > base.context:
        raise UserError(f"a question of {max(map(len, questions))} tokens leaves no room for an answer; shorten it")
    return torch.cat([_label_scores(base, questions[i : i + ROWS], labels) for i in range(0, len(questions), ROWS)])


def _label_scores(base: Base, questions: Sequence[list[int]], labels: Sequence[list[int]]) -> Float[Tensor, "rows labels"]:
    width, device = max(map(len, questions)), base.device
    pads = torch.tensor([width - len(q) for q in questions], device=device)
    tail = torch.tensor([i for label in labels for i in label], device=device)
    owner = torch.tensor([k for k, label in enumerate(labels) for _ in label], device=device)
    place = torch.tensor([j for label in labels for j in range(len(label))], device=device)
    asked = torch.tensor([[base.codec.pad_id] * (width - len(q)) + list(q) for q in questions], device=device)
    columns = torch.cat([torch.arange(width, device=device), width + place])  # the position in a row without padding
    group = torch.cat([torch.full((width,), -1, device=device), owner])  # -1 is the question
    order = torch.arange(len(columns), device=device)
    seen = (order[:, None] >= order) & ((group == -1) | (group[:, None] == group))
    padding = order < pads[:, None]
    visible = (seen & ~padding[:, None]) | (order[:, None] == order)  # padding sees itself: softmax of nothing is NaN
    rows = columns.expand(len(questions), -1)
    hidden = base.hidden(
        torch.cat([asked, tail.expand(len(questions), -1)], 1),
        position_ids=(rows - pads[:, None]).clamp(min=0),
        attention_mask=attention_masks(base, rows, columns, visible),
        use_cache=False,
    )
    before = torch.where(place == 0, width - 1, width + torch.arange(len(tail), device=device) - 1)
    logp = base.logits(hidden[:, before]).log_softmax(-1)
    of_tokens = logp.gather(-1, tail.expand(len(questions), -1)[..., None])[..., 0]
    sums = torch.zeros(len(questions), len(labels), device=device).index_add(1, owner, of_tokens)
    return (sums / torch.bincount(owner)).cpu()


@torch.no_grad()
def answer_scores(
    base: Base,
    prompts: Sequence[list[int]],
    answers: Sequence[list[int]],
    kinds: Int[Tensor, " n"] | None = None,
    choose: Callable[[Tensor], None] | None = None,
) -> Likelihood:
    """The likelihood of answers[i], at least one token, after prompts[i]. kinds, choose: as in `sample`, an expert for each row."""
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    size = max(1, ELEMENTS // (longest * base.model.config.get_text_config().vocab_size))
    parts = []
    for i in range(0, len(prompts), size):
        if choose and kinds is not None:
            choose(kinds[i : i + size])
        parts.append(_answer_scores(base, prompts[i : i + size], answers[i : i + size]))
    return Likelihood(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _answer_scores(base: Base, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> Likelihood:
    rows = [torch.tensor([*p, *a]) for p, a in zip(prompts, answers, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(base.device)
    hidden = base.hidden(ids[:, :-1], use_cache=False)
    counts = torch.tensor([len(a) for a in answers])
    row = torch.arange(len(rows)).repeat_interleave(counts)
    column = torch.cat([torch.arange(len(p), len(p) + len(a)) for p, a in zip(prompts, answers, strict=True)])
    logp = base.logits(hidden[row, column - 1]).log_softmax(-1)
    of_tokens = torch.stack([logp.gather(-1, ids[row, column][:, None])[:, 0], torch.special.entr(logp.exp()).sum(-1)]).cpu()
    means = torch.zeros(2, len(rows)).index_add(1, row, of_tokens) / counts
    return Likelihood(*means)
