"""Log-probabilities of an episode's own tokens, without ever holding [batch, time, vocabulary].

Episodes are padded on the right and run through the base once. Those of one prompt may share it: they stand behind it in one row, a
mask lets each see the prompt and itself, and each has the positions that follow the prompt:

    column      0 ... p-1   p  p+1   p+2  p+3
    token       prompt      a1  a2    b1   b2
    position    0 ... p-1   p  p+1   p    p+1

Only attention sees the padding of such rows (packed.py). The final hidden states of the columns that predict an own token are
gathered, and the vocabulary scores are made a chunk at a time, small enough for the processor's cache. The head is frozen, so of a
token's scores all that the backward pass needs is the slope

    d log p_t / dh = head'(h)ᵀ (onehot_t - p) / temperature

[width], and that of the exact KL where it is asked for: they are computed with the scores and kept instead of them.

Source: the shared prompt, verl's prefix grouper.
Differs from a chunk loop under plain autograd, as in several trainers: that keeps every chunk's scores for the backward pass and
saves nothing; or, with checkpoints, makes them twice.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import pad_sequence

from svf_rl.base.load import Base
from svf_rl.learn.packed import packed_hidden
from svf_rl.learn.reinforce import exact_kl
from svf_rl.rollout.engine import Unknown, check_known
from svf_rl.rollout.modules import attention_masks
from svf_rl.types import Episode

CHUNK_ELEMENTS, CHUNK_ROWS = 1 << 24, 256  # at most so many scores and tokens at a time
ROW = 512  # tokens: up to there, or twice the prompt, one more episode in a row costs less attention than its prompt would cost


class TokenScores(NamedTuple):
    """Per own token, all episodes one after another: log-probability, entropy (no gradient), exact KL to the base or zeros."""

    logp: Float[Tensor, " n"]
    entropy: Float[Tensor, " n"]
    kl: Float[Tensor, " n"]


class Row(NamedTuple):
    """Episodes that share a prompt, without the last token of each. owner: whose a token is, -1 the prompt's.

    own: the columns whose states predict the episodes' own tokens.
    """

    ids: list[int]
    positions: list[int]
    owner: list[int]
    own: list[int]


def may_share(base: Base) -> bool:
    """Whether episodes may share a prompt: the base, as it now is, must do what masks and positions say and nothing else."""
    try:
        check_known(base)
    except Unknown:
        return False
    return True


def micro_batches(episodes: Sequence[Episode], budget: int, share: bool = False) -> list[list[int]]:
    """Indices of episodes in batches of at most `budget` padded tokens, similar lengths together; `share`: see `own_hidden`."""
    rows = indices_by_row(episodes, share)
    lengths = [row_length([episodes[i] for i in row]) for row in rows]
    batches: list[list[int]] = []
    width = count = 0
    for length, row in sorted(zip(lengths, rows, strict=True), key=lambda pair: -pair[0]):
        if not batches or (count + 1) * width > budget:
            batches.append([])
            width, count = length, 0
        batches[-1] += row
        count += 1
    return batches


def indices_by_row(episodes: Sequence[Episode], share: bool) -> list[list[int]]:
    """Which episodes stand in one row: consecutive ones of one prompt up to ROW; each its own unless they share."""
    rows: list[list[int]] = []
    for i, episode in enumerate(episodes):
        row = [episodes[k] for k in rows[-1]] if rows else []
        p = prompt_length(episode)
        if (
            share
            and row
            and episode.ids[:p] == row[0].ids[: prompt_length(row[0])]
            and row_length([*row, episode]) <= max(ROW, 2 * p)
        ):
            rows[-1].append(i)
        else:
            rows.append([i])
    return rows


def prompt_length(episode: Episode) -> int:
    return episode.own.index(True)


def row_length(row: Sequence[Episode]) -> int:
    prompt = prompt_length(row[0])
    return prompt + sum(len(e.ids) - prompt for e in row)


def make_row(episodes: Sequence[Episode]) -> Row:
    p = prompt_length(episodes[0])
    row = Row(episodes[0].ids[:p], list(range(p)), [-1] * p, [])
    for k, episode in enumerate(episodes):
        rest, start = episode.ids[p:-1], len(row.ids)
        before = [p - 1, *range(start, start + len(rest))]
        row.own.extend(column for column, own in zip(before, episode.own[p:], strict=True) if own)
        row.ids.extend(rest)
        row.positions.extend(range(p, p + len(rest)))
        row.owner.extend([k] * len(rest))
    return row


def own_hidden(base: Base, episodes: Sequence[Episode], share: bool = False) -> tuple[Float[Tensor, "n width"], Int[Tensor, " n"]]:
    """The hidden states that predict the episodes' own tokens, and those tokens.

    share: consecutive episodes of one prompt share it; only for a base that `may_share`.
    """
    rows = [make_row([episodes[i] for i in row]) for row in indices_by_row(episodes, share)]
    ids, positions, owner = (
        pad_sequence([torch.tensor(row[part]) for row in rows], batch_first=True, padding_value=padding).to(base.device)
        for part, padding in enumerate((0, 0, -2))
    )
    if len(rows) == len(episodes):
        hidden = base.hidden(ids, use_cache=False, attention_mask=owner > -2)  # regularisers pass over padding
    else:
        masks = shared_masks(base, positions, owner)
        if base.model.config._attn_implementation == "sdpa":
            hidden = packed_hidden(base, ids, positions, masks, owner > -2)
        else:
            hidden = base.hidden(ids, use_cache=False, attention_mask=masks, position_ids=positions)
    index = torch.tensor([(r, column) for r, row in enumerate(rows) for column in row.own], device=base.device)
    own = torch.tensor([t for e in episodes for t, own in zip(e.ids, e.own, strict=True) if own], device=base.device)
    return hidden[index[:, 0], index[:, 1]], own


def shared_masks(base: Base, positions: Int[Tensor, "rows time"], owner: Int[Tensor, "rows time"]) -> Tensor | dict[str, Tensor]:
    """Every token sees those before it that are the prompt's or its own episode's."""
    visible = ((owner == -1)[:, None] | (owner[:, :, None] == owner[:, None])).tril()
    return attention_masks(base, positions, positions, visible)


def token_scores(
    hidden: Float[Tensor, "n width"],
    tokens: Int[Tensor, " n"],
    head: Callable[[Tensor], Tensor],
    temperature: float,
    reference: Float[Tensor, "n width"] | None = None,
    vocabulary: int = 1,
) -> TokenScores:
    """Scores of `tokens` given `hidden`; with `reference` hidden states of the base, the exact KL too."""
    size = max(1, min(CHUNK_ROWS, CHUNK_ELEMENTS // vocabulary))
    return TokenScores(*_Scores.apply(hidden, tokens, head, temperature, reference, size))


class _Scores(torch.autograd.Function):
    """What a state changes in each score of its token is computed with the scores, which are then thrown away."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        tokens: Tensor,
        head: Callable[[Tensor], Tensor],
        temperature: float,
        reference: Tensor | None,
        size: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        pieces = [slice(i, i + size) for i in range(0, max(1, len(tokens)), size)]
        parts = ((hidden[i], tokens[i], None if reference is None else reference[i]) for i in pieces)
        found = [_chunk(*part, head, temperature, ctx.needs_input_grad[0]) for part in parts]
        logp, entropy, kl, *slopes = (torch.cat(column) for column in zip(*found, strict=True))
        ctx.save_for_backward(*slopes)
        ctx.mark_non_differentiable(entropy)
        return logp, entropy, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        towards = zip((grads[0], grads[2]), ctx.saved_tensors, strict=False)  # without a reference, the KL has no slope
        return sum(grad[:, None] * slope for grad, slope in towards), None, None, None, None, None


def _chunk(
    hidden: Tensor, tokens: Tensor, reference: Tensor | None, head: Callable[[Tensor], Tensor], temperature: float, slopes: bool
) -> tuple[Tensor, ...]:
    """Log-probability, entropy, KL; and, for a gradient, what the states change in the first and, with a reference, the last."""
    hidden = hidden.detach().requires_grad_(slopes)
    with torch.set_grad_enabled(slopes):
        every = torch.log_softmax(head(hidden) / temperature, -1)
        logp = every.gather(1, tokens[:, None])[:, 0]
        kl = None if reference is None else exact_kl(every, torch.log_softmax(head(reference.detach()) / temperature, -1))
    entropy = exact_entropy(every.detach())
    values = (logp.detach(), entropy, torch.zeros_like(entropy) if kl is None else kl.detach())
    if not slopes:
        return values
    wanted = [logp] if kl is None else [logp, kl]
    ones = torch.ones_like(entropy)  # a score depends on the state of its own token only
    return *values, *(torch.autograd.grad(score, hidden, ones, retain_graph=score is not wanted[-1])[0] for score in wanted)


def exact_entropy(logp: Float[Tensor, "n vocabulary"]) -> Float[Tensor, " n"]:
    """Of whole distributions; 0 log 0 = 0."""
    return -(logp.exp() * logp.clamp(min=-100)).sum(-1)
