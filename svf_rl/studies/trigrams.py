"""Skip trigrams A ... B_b -> C_b, one A for all b: a head, whose output depends on its source alone, cannot say which C is right.

Tokens: A = 0, B_b = b, C_b = b + n for b = 1..n, BOS = 2n + 1. A sequence begins with BOS and is drawn uniformly; once an A is open
no other A comes, and when a B does, its C is forced and closes the A.

Source: cmathw/gated-attn, gated_attention/dataset.
Differs from the source: the check that tokens are uniform compares the part before any A is open; the forced tokens are not
meant to be uniform.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

LENGTH = 11


def vocabulary(trigrams: int) -> int:
    return 2 * trigrams + 2


def draw(trigrams: int, rows: int, generator: torch.Generator) -> tuple[Int[Tensor, "rows time"], Bool[Tensor, "rows time"]]:
    """Sequences, and where the next token is forced (the position of a B that an A precedes)."""
    v = vocabulary(trigrams)
    ids, forced = torch.full((rows, LENGTH), v - 1), torch.zeros(rows, LENGTH, dtype=torch.bool)
    is_open = torch.zeros(rows, dtype=torch.bool)
    for i in range(1, LENGTH):
        any_token = torch.randint(0, v, (rows,), generator=generator)
        no_a = torch.randint(1, v, (rows,), generator=generator)
        now, due = torch.where(is_open, no_a, any_token), forced[:, i - 1]
        ids[:, i] = torch.where(due, ids[:, i - 1] + trigrams, now)
        is_open = (is_open & ~due) | (~due & (ids[:, i] == 0))
        forced[:, i] = is_open & (ids[:, i] >= 1) & (ids[:, i] <= trigrams)
    forced[:, -1] = False
    return ids, forced


def problems(ids: Int[Tensor, "rows time"], forced: Bool[Tensor, "rows time"], trigrams: int, at_least: int) -> list[str]:
    """What is wrong with a data set; empty if it is valid."""
    source, follows = ids[:, :-1][forced[:, :-1]], ids[:, 1:][forced[:, :-1]]
    counts, cut = (torch.bincount(b, minlength=trigrams + 1)[1 : trigrams + 1] for b in (source, cut_off(ids, forced, trigrams)))
    before = torch.cat([torch.zeros(len(ids), 1, dtype=torch.bool), (ids == 0).cumsum(1)[:, :-1] > 0], 1)[:, 1:]
    free = torch.bincount(ids[:, 1:][~before], minlength=vocabulary(trigrams)).float()
    found = {
        "a trigram is missing or rare": bool((counts < at_least).any()),
        "a B is followed by another token than its C": not torch.equal(follows, source + trigrams),
        "too often there is no place left for a C": bool(cut.max() > 0.5 * (counts + cut).min()),
        "free tokens are not uniform": bool(free.max() > 1.5 * free.min()),
    }
    return [what for what, wrong in found.items() if wrong]


def cut_off(ids: Int[Tensor, "rows time"], forced: Bool[Tensor, "rows time"], trigrams: int) -> Int[Tensor, " some"]:
    """The last tokens that are a B of an open A: their C would stand beyond the end."""
    last, is_open = ids[:, -1], (ids[:, :-1] == 0).sum(1) > forced[:, :-1].sum(1)
    return last[is_open & (last >= 1) & (last <= trigrams)]
