"""One learner step (scores, loss, gradient of z) beside the released code's way and beside LoRA of the same micro-batch.

    python bench/learner.py

Both sides take turns on the same episodes, so that other work on the machine slows both; figures are medians. The released way is
written from its description: one episode at a time, the whole vocabulary in float32, and every adapted weight rebuilt through
diag_embed inside the graph, so that a dense gradient of every matrix exists. LoRA is that of `peft`, rank 16 on the same matrices.
Neither side computes a KL. Peak memory is that of all tensors that one step makes, beyond what was there before.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor
from torch.func import functional_call
from torch.profiler import ProfilerActivity, profile

from svf_rl.adapter import Adapter
from svf_rl.adapters import ADAPTERS, make_adapter
from svf_rl.base.load import Base, BaseConfig, load_base
from svf_rl.learn.scores import micro_batches, own_hidden, token_scores
from svf_rl.rollout.episodes import EnvConfig, make_env, play
from svf_rl.rollout.sampler import Sampling
from svf_rl.svf.factorize import factorize
from svf_rl.types import Episode, Factors

REPEATS, GROUP, QUESTIONS, BUDGET = 5, 8, 16, 16384
Step = Callable[[], Tensor]


def run() -> list[dict[str, Any]]:
    """Seconds of a step; the ratio is theirs to ours, above 1 is faster than the other side."""
    base = load_base(BaseConfig())
    found = play(base, make_env(EnvConfig()), "train", [i // GROUP for i in range(GROUP * QUESTIONS)], Sampling(64), range(128))
    episodes = [e for e in found if e is not None]
    factors = factorize(base, "attention+mlp")
    svf, lora = (make_adapter(base, ADAPTERS[name].settings()) for name in ("svf", "lora"))
    ours, theirs = (lambda a=a: ours_step(base, a, episodes) for a in (svf, lora))  # type: ignore[misc]
    return [
        {**row("learner step, beside the released code's way", ours, lambda: released_step(base, factors, episodes), svf, None)},
        {**row("learner step, beside LoRA rank 16 (peft)", ours, theirs, svf, lora)},
        *memory(ours, theirs, svf, lora),
    ]


def ours_step(base: Base, adapter: Adapter, episodes: list[Episode]) -> Tensor:
    """Gradients of -log p of every own token, in micro-batches."""
    total = torch.zeros(())
    for batch in micro_batches(episodes, BUDGET):
        hidden, tokens = own_hidden(base, [episodes[i] for i in batch])
        loss = -token_scores(hidden, tokens, base.logits, vocabulary=base.model.config.vocab_size, temperature=1.0).logp.sum()
        loss.backward()
        total += loss.detach()
    return total


def released_step(base: Base, factors: dict[str, Factors], episodes: list[Episode]) -> Tensor:
    z = {name: torch.ones_like(f.s, requires_grad=True) for name, f in factors.items()}
    plain, total = dict(base.model.named_parameters()), torch.zeros(())
    for episode in episodes:
        rebuilt = {f"{name}.weight": f.U @ torch.diag_embed(f.s * z[name]) @ f.Vt for name, f in factors.items()}
        ids = torch.tensor([episode.ids])
        logits = functional_call(base.model, {**plain, **rebuilt}, (ids,), {"use_cache": False}).logits[0, :-1]
        own = torch.tensor(episode.own[1:])
        loss = -logits.float().log_softmax(-1).gather(1, ids[0, 1:, None])[own].sum()
        loss.backward()
        total += loss.detach()
    return total


@contextmanager
def installed(adapter: Adapter | None) -> Iterator[None]:
    if adapter is not None:
        adapter.install()
    try:
        yield
    finally:
        if adapter is not None:
            adapter.uninstall()


def timed(step: Step, adapter: Adapter | None) -> float:
    with installed(adapter):
        begun = time.perf_counter()
        step()
        return time.perf_counter() - begun


def row(name: str, ours: Step, theirs: Step, mine: Adapter, other: Adapter | None) -> dict[str, Any]:
    """Both sides in turn, after one unmeasured turn; the two losses must agree, for both are the base's."""
    with installed(mine):
        first = ours()
    with installed(other):
        second = theirs()
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-2)
    taken = [(timed(ours, mine), timed(theirs, other)) for _ in range(REPEATS)]
    left, right = (statistics.median(side) for side in zip(*taken, strict=True))
    return {"name": name, "ours": left, "theirs": right, "unit": "s", "ratio": right / left}


def peak(step: Step, adapter: Adapter) -> float:
    """MiB of the most that tensors held at once during a step, from the allocator's own events."""
    with installed(adapter), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    held = most = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / 2**20


def memory(ours: Step, theirs: Step, mine: Adapter, other: Adapter) -> list[dict[str, Any]]:
    left, right = peak(ours, mine), peak(theirs, other)
    return [{"name": "its peak memory, beside LoRA's", "ours": left, "theirs": right, "unit": "MiB", "ratio": right / left}]


if __name__ == "__main__":
    for line in run():
        print(f"{line['name']:58} {line['ours']:8.3f} {line['theirs']:8.3f} {line['unit']}   {line['ratio']:.2f} x")
