"""The system of two passes: a dispatcher weighs the experts for every prompt, then each prompt is answered by its own mixture.

Prompts with the same weights share a mixture; all mixtures answer as rows of one batch. Prompts for which the dispatcher abstains
are answered by the base itself, in a batch of their own: their answers are the base's, bit for bit.

Source: Transformer-Squared, section 3.2.
Differs from the source (SakanaAI/self-adaptive-llms): it answers prompt after prompt and rebuilds the weights for each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from svf_rl.base.load import Base
from svf_rl.dispatch.dispatcher import Decision, Dispatcher, mixture
from svf_rl.errors import UserError
from svf_rl.rollout.sampler import Sampling, check_prompts, sample
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.types import Completion, Expert


@dataclass(frozen=True)
class Answer:
    """One prompt's answer. weights: of the experts that gave it (of several by matrix their mean); empty for the base."""

    text: str
    completion: Completion
    weights: Mapping[str, float]
    label: str
    scores: Mapping[str, float]


def answer(
    base: Base,
    adapter: SVFAdapter,
    experts: Mapping[str, Expert],
    dispatcher: Dispatcher,
    prompts: Sequence[str],
    sampling: Sampling,
    seeds: Sequence[int],
) -> tuple[list[Answer], Decision]:
    """The answers in order, and what the first pass said and cost. The adapter is installed; what it has loaded plays no part.

    UserError for a prompt without text, or too long.
    """
    if not all(prompt.strip() for prompt in prompts):
        raise UserError("expected a prompt, found an empty one; give some text")
    ids = [base.codec.prompt(prompt) for prompt in prompts]
    check_prompts(base, ids)  # before the first pass
    decision = dispatcher.decide(prompts)
    completions = write(base, adapter, list(experts.values()), decision.weights, ids, sampling, seeds)
    used = [_named(list(experts), row) for row in decision.weights]
    texts = [base.codec.decode(completion.ids) for completion in completions]
    rows = zip(texts, completions, used, decision.labels, decision.scores, strict=True)
    return [Answer(*row) for row in rows], decision


def write(
    base: Base,
    adapter: SVFAdapter,
    experts: Sequence[Expert],
    weights: Tensor,
    ids: Sequence[list[int]],
    sampling: Sampling,
    seeds: Sequence[int],
) -> list[Completion]:
    """The second pass: one completion for each prompt, under the mixture that its row of weights [prompts, experts, ...] gives."""
    kinds, mixtures = group(experts, weights)
    plain = [i for i, kind in enumerate(kinds) if mixtures[kind] is None]
    mixed = [i for i, kind in enumerate(kinds) if mixtures[kind] is not None]

    def part(rows: list[int], **how: Any) -> list[Completion]:
        return sample(base, [ids[i] for i in rows], sampling, [seeds[i] for i in rows], **how)

    with adapter.disabled():
        found = dict(zip(plain, part(plain), strict=True))
    if mixed:
        used = list(dict.fromkeys(kinds[i] for i in mixed))  # without the base, whose presence would change the form of all
        with adapter.mixtures([mixtures[kind] for kind in used]) as choose:
            found |= zip(mixed, part(mixed, kinds=[used.index(kinds[i]) for i in mixed], choose=choose), strict=True)
    return [found[i] for i in range(len(ids))]


def group(experts: Sequence[Expert], weights: Tensor) -> tuple[list[int], list[Expert | None]]:
    """For each row of weights the number of its mixture, and the different mixtures; None is the base."""
    rows = [tuple(row.flatten().tolist()) for row in weights]
    numbers = {row: n for n, row in enumerate(dict.fromkeys(rows))}
    kinds = [numbers[row] for row in rows]
    return kinds, [mixture(experts, weights[kinds.index(n)]) for n in range(len(numbers))]


def _named(names: Sequence[str], weights: Tensor) -> dict[str, float]:
    means = weights.reshape(len(names), -1).mean(1) if names else torch.zeros(0)
    return {name: value for name, value in zip(names, means.tolist(), strict=True) if value}
