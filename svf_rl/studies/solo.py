"""Which heads say what: the judge of the superposition study, which no training sees.

Source: cmathw/gated-attn, gated_attention/experiments/analysis_utils.py.
Differs from the source: examples are places anywhere in a sequence, also after other trigrams; there a sequence has one trigram.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from svf_rl.studies.heads import Heads, Places, places
from svf_rl.studies.trigrams import draw, vocabulary

ACTIVE = 0.1  # of the strongest
LEARNT = 0.99  # the least accuracy of a trigram that a model has learnt


@dataclass(frozen=True)
class Examples:
    """Held-out sequences as places; which of them are a B after an open A; and how many trigrams there are."""

    at: Places
    forced: Bool[Tensor, " places"]
    trigrams: int


def examples(trigrams: int, rows: int, seed: int) -> Examples:
    ids, forced = draw(trigrams, rows, torch.Generator().manual_seed(seed))
    return Examples(places(ids, vocabulary(trigrams)), forced.flatten(), trigrams)


@torch.no_grad()
def solo_heads(outputs: Float[Tensor, "places heads V"], found: Examples) -> dict[int, list[int]]:
    """For each trigram the heads that encode it alone: whatever other heads are removed, those that stay still say its C.

    In more than 99 % of its examples. A trigram without one is distributed, if the model has learnt it.
    """
    solo: dict[int, list[int]] = {}
    for b in range(1, found.trigrams + 1):
        said = outputs[found.forced & (found.at.tokens == b)]
        heads = range(said.shape[1])
        solo[b] = [head for head in heads if _speaks_alone(said, head, [h for h in heads if h != head], b + found.trigrams)]
    return solo


def _speaks_alone(said: Float[Tensor, "examples heads V"], head: int, others: list[int], answer: int) -> bool:
    subsets = (list(kept) for size in range(len(others) + 1) for kept in combinations(others, size))
    return all((said[:, [head, *kept]].sum(1).argmax(-1) == answer).double().mean() > 0.99 for kept in subsets)


@torch.no_grad()
def measures(base: Heads, gated: Heads, found: Examples) -> dict[str, Any]:
    """Of the imitation: R2, and KL(base || gated) of the next token in nats. Of both models: accuracy and nats of the Cs, solo
    heads, trigrams that are not learnt, distributed ones, heads that speak for a trigram.

    A pair of tokens is active in a head that says a tenth as much through it as the most that is said, a head speaks for a trigram
    if it says a tenth of what all heads together do there.
    """
    target, output = base(found.at)[0], gated(found.at)[0]
    residual = (output - target).square().sum() / (target - target.mean(0)).square().sum()
    agree = {"r2": 1 - float(residual), "kl": divergence(target, output, found)}
    return {**agree, **_gates(gated, found), "base": _model(base, found), "gated": _model(gated, found)}


def divergence(base: Float[Tensor, "places V"], gated: Float[Tensor, "places V"], found: Examples) -> float:
    """KL(base || gated) of the next token, in nats, mean over places, of what both add to the token."""
    token = F.one_hot(found.at.tokens, base.shape[-1])
    first, second = ((token + said).log_softmax(-1) for said in (base, gated))
    return float(F.kl_div(second, first, log_target=True, reduction="batchmean"))


def _model(model: Heads, found: Examples) -> dict[str, Any]:
    outputs, forced = model.per_head(found.at)[0], found.forced
    logits, solo = next_token(outputs, found), solo_heads(outputs, found)
    answer = found.at.tokens + found.trigrams
    right = (logits.argmax(-1) == answer).double()
    learnt = [b for b in solo if right[forced & (found.at.tokens == b)].mean() >= LEARNT]
    loud = outputs[forced].norm(dim=-1) > ACTIVE * outputs[forced].sum(1).norm(dim=-1)[:, None]
    return {
        "accuracy": float(right[forced].mean()),
        "nats": float(F.cross_entropy(logits[forced], answer[forced])),
        "solo": solo,
        "not_learnt": [b for b in solo if b not in learnt],
        "distributed": [b for b in learnt if not solo[b]],
        "heads_per_trigram": float(loud.sum(1).double().mean()),
    }


def next_token(outputs: Float[Tensor, "places heads V"], found: Examples) -> Float[Tensor, "places V"]:
    """The logits of a model that adds what its heads say to the token."""
    return F.one_hot(found.at.tokens, outputs.shape[-1]) + outputs.sum(1)


def _gates(gated: Heads, found: Examples) -> dict[str, float]:
    at = Places(*(part[::8] for part in found.at))  # an eighth of the places is plenty
    strength, occurs = gated.pairwise(at)[0], at.counts > 0
    active = (strength > ACTIVE * strength.transpose(0, 1)[:, occurs].max()) & occurs[:, None]
    gates = gated.tables().gate[0][:, at.tokens].transpose(0, 1)
    return {
        "median_active_gate": float(gates[active].median()),
        "heads_per_pair": float(active.sum(1)[occurs].double().mean()),
    }
