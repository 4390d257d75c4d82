"""Log-probabilities of an episode's own tokens, without ever holding [batch, time, vocabulary].

Episodes are padded on the right and run through the base once. Those of one prompt may share it: they stand behind it in one row, a
mask lets each see the prompt and itself, and each has the positions that follow the prompt:

    column      0 ... p-1   p  p+1   p+2  p+3
    token       prompt      a1  a2    b1   b2
    position    0 ... p-1   p  p+1   p    p+1

The final hidden states of the columns that predict an own token are gathered, and the vocabulary scores are made a chunk at a time.
Where there is more than one chunk, each is recomputed in the backward pass (torch.utils.checkpoint), so at most CHUNK_ELEMENTS
scores exist at once. The head is frozen: only the hidden states get a gradient.

Source: the shared prompt, verl's prefix grouper.
Differs from the source (a chunk loop under plain autograd, as in several trainers): that keeps every chunk's scores for the
backward pass and saves nothing.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from svf_rl.base.load import Base
from svf_rl.learn.reinforce import exact_kl
from svf_rl.rollout.engine import Unknown, check_known
from svf_rl.rollout.modules import attention_masks
from svf_rl.types import Episode

CHUNK_ELEMENTS = 1 << 24
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

    def chunk(h: Tensor, t: Tensor, r: Tensor | None) -> TokenScores:
        logp = torch.log_softmax(head(h) / temperature, -1)
        fixed = logp.detach()
        entropy = -(fixed.exp() * fixed.clamp(min=-100)).sum(-1)  # 0 log 0 = 0
        kl = torch.zeros_like(entropy) if r is None else exact_kl(logp, torch.log_softmax(head(r) / temperature, -1))
        return TokenScores(logp.gather(1, t[:, None])[:, 0], entropy, kl)

    size = max(1, CHUNK_ELEMENTS // vocabulary)
    if len(tokens) <= size:
        return chunk(hidden, tokens, reference)
    pieces = [
        checkpoint(
            chunk,
            hidden[i : i + size],
            tokens[i : i + size],
            None if reference is None else reference[i : i + size],
            use_reentrant=False,
        )
        for i in range(0, len(tokens), size)
    ]
    return TokenScores(*(torch.cat(column) for column in zip(*pieces, strict=True)))
