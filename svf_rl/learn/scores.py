"""Log-probabilities of an episode's own tokens, without ever holding [batch, time, vocabulary].

Episodes are padded on the right and run through the base once; the final hidden states of the positions that predict an own
token are gathered, and the vocabulary scores are made a chunk at a time. Each chunk is recomputed in the backward pass
(torch.utils.checkpoint), so at most CHUNK_ELEMENTS scores exist at once. The head is frozen: only the hidden states get a gradient.

Differs from the source (a chunk loop under plain autograd, as in several trainers): that keeps every chunk's scores for the
backward pass and saves nothing.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from svf_rl.base.load import Base
from svf_rl.learn.reinforce import exact_kl
from svf_rl.types import Episode

CHUNK_ELEMENTS = 1 << 24


class TokenScores(NamedTuple):
    """Per own token, all episodes one after another: log-probability, entropy (no gradient), exact KL to the base or zeros."""

    logp: Float[Tensor, " n"]
    entropy: Float[Tensor, " n"]
    kl: Float[Tensor, " n"]


def micro_batches(episodes: Sequence[Episode], budget: int) -> list[list[int]]:
    """Indices of episodes in batches of at most `budget` padded tokens, similar lengths together."""
    order = sorted(range(len(episodes)), key=lambda i: len(episodes[i].ids))
    batches: list[list[int]] = []
    for i in order:
        if not batches or (len(batches[-1]) + 1) * len(episodes[i].ids) > budget:
            batches.append([])
        batches[-1].append(i)
    return batches


def own_hidden(base: Base, episodes: Sequence[Episode]) -> tuple[Float[Tensor, "n width"], Int[Tensor, " n"]]:
    """The hidden states that predict the episodes' own tokens, and those tokens."""
    ids = _pad([e.ids for e in episodes]).to(base.device)
    own = _pad([e.own for e in episodes]).bool().to(base.device)
    real = _pad([[True] * len(e.ids) for e in episodes]).to(base.device)  # regularisers pass over padding
    hidden = base.hidden(ids[:, :-1], attention_mask=real[:, :-1], use_cache=False)
    return hidden[own[:, 1:]], ids[:, 1:][own[:, 1:]]


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
        entropy = torch.special.entr(logp.detach().exp()).sum(-1)
        kl = torch.zeros_like(entropy) if r is None else exact_kl(logp, torch.log_softmax(head(r) / temperature, -1))
        return TokenScores(logp.gather(1, t[:, None])[:, 0], entropy, kl)

    size = max(1, CHUNK_ELEMENTS // vocabulary)
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


def _pad(rows: Sequence[Sequence[int]]) -> Int[Tensor, "rows time"]:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)
