"""How cost grows: time and memory against batch, prompt length, completion length, width, matrices and experts.

One quantity moves, the others stay: 32 rows, a prompt of 32 tokens, 32 new ones, the embedded base's four layers of width 192.
Weights are random, nothing stops early, decoding is greedy. A row of the table is one point; `slope` is the exponent of the
time since the point before, d log time / d log x: 0 is free, 1 is in proportion, and where it changes there is a bend. Memory
is the most that tensors made by the work hold at once. Writes bench/growth.png beside the table. What the bends are is in
LOG.md.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import transformers

from bench._measure import Row, Side, installed, medians, peak, turns
from bench.learner import gradient
from bench.rollout import random_base
from svf_rl.base.load import Base, BaseConfig, load_base
from svf_rl.rollout.sampler import Sampling, sample
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.svf.factorize import find_targets
from svf_rl.types import Episode, Expert, Factors

ROWS, PROMPT, NEW, ROUNDS = 32, 32, 32, 3
SHAPE = {
    "vocab_size": 2048,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def run() -> Iterator[Row]:
    """ours: milliseconds.  theirs: MiB.  ratio: the slope."""
    embedded, curves = load_base(BaseConfig()), {}
    for name, (values, make) in CURVES.items():
        curves[name] = curve(name, values, lambda value, make=make: make(embedded, value))  # type: ignore[misc]
        yield from rows(name, curves[name])
    draw(curves)


def curve(name: str, values: list[int], make: Callable[[int], Side]) -> list[tuple[int, float, float]]:
    """(value, milliseconds, MiB) at each value."""
    sides = {str(value): make(value) for value in values}
    times = medians(turns(sides, ROUNDS, name))
    return [(value, 1000 * t, peak(side)) for value, t, side in zip(values, times, sides.values(), strict=True)]


def rows(name: str, points: list[tuple[int, float, float]]) -> Iterator[Row]:
    before = points[0]
    for value, time, memory in points:
        slope = math.log(time / before[1]) / math.log(value / before[0]) if value > before[0] else math.nan
        before = (value, time, memory)
        yield {
            "name": f"{name} {value}: time, peak memory; slope",
            "ours": time,
            "theirs": memory,
            "unit": "ms, MiB",
            "ratio": slope,
        }


def rollout(embedded: Base, n: int = ROWS, prompt: int = PROMPT, new: int = NEW, **shape: int) -> Side:
    base = random_base(embedded, {**SHAPE, **shape}, torch.float32, transformers.LlamaConfig)
    prompts = torch.randint(0, 2000, (n, prompt), generator=torch.Generator().manual_seed(0)).tolist()
    return lambda: sample(base, prompts, Sampling(new, 0.0, n), range(n))


def learner(embedded: Base, n: int = ROWS, matrices: int = 28, **shape: int) -> Side:
    base = random_base(embedded, {**SHAPE, **shape}, torch.float32, transformers.LlamaConfig)
    adapter = SVFAdapter(base.model, made_up_factors(base, matrices))
    ids = torch.randint(0, 2000, (n, PROMPT + NEW), generator=torch.Generator().manual_seed(0)).tolist()
    own = [False] * PROMPT + [True] * NEW
    episodes = [Episode(row, own, [0.0] * NEW, 1.0, "", "stop", "", "") for row in ids]

    def side() -> None:
        with installed(adapter):
            gradient(base, adapter, episodes)

    return side


def mixed(embedded: Base, experts: int) -> Side:
    """ROWS rows of one of so many experts each; to make the table of experts is part of it."""
    base = random_base(embedded, SHAPE, torch.float32, transformers.LlamaConfig)
    adapter = SVFAdapter(base.model, made_up_factors(base, 28))
    adapter.install()
    stream = torch.Generator().manual_seed(0)
    made = [
        Expert({n: 1 + 0.05 * torch.randn(s.shape, generator=stream) for n, s in adapter.spectra.items()}) for _ in range(experts)
    ]
    prompts = torch.randint(0, 2000, (ROWS, PROMPT), generator=stream).tolist()

    def side() -> None:
        with adapter.mixtures(made) as choose:
            kinds = [i % experts for i in range(ROWS)]
            sample(base, prompts, Sampling(NEW, 0.0, ROWS), range(ROWS), kinds=kinds, choose=choose)

    return side


def made_up_factors(base: Base, matrices: int) -> dict[str, Factors]:
    """Of the right shapes, for the first so many matrices; time and memory do not depend on the values."""
    found: dict[str, Factors] = {}
    for name, module in list(find_targets(base.model, "attention+mlp").items())[:matrices]:
        out, inner = module.weight.shape  # type: ignore[misc]
        r = min(out, inner)
        u, vt = (torch.randn(*size, device=base.device) / size[0] ** 0.5 for size in ((out, r), (r, inner)))
        found[name] = Factors(u, torch.ones(r, device=base.device), vt)
    return found


def wide(value: int) -> dict[str, int]:
    return {
        "hidden_size": value,
        "intermediate_size": 8 * value // 3,
        "num_attention_heads": value // 32,
        "num_key_value_heads": value // 32,
    }


CURVES: dict[str, tuple[list[int], Callable[[Base, int], Side]]] = {
    "rollout, rows": ([1, 4, 16, 64, 256], lambda b, n: rollout(b, n)),
    "rollout, prompt length": ([8, 32, 128, 512], lambda b, n: rollout(b, prompt=n, new=8)),
    "rollout, completion length": ([8, 32, 128, 512], lambda b, n: rollout(b, new=n)),
    "rollout, width": ([96, 192, 384, 768], lambda b, n: rollout(b, new=16, **wide(n))),
    "learner, rows": ([4, 16, 64, 256], lambda b, n: learner(b, n)),
    "learner, width": ([96, 192, 384, 768], lambda b, n: learner(b, **wide(n))),
    "learner, matrices": ([1, 4, 14, 28], lambda b, n: learner(b, matrices=n)),
    "rollout, experts in the batch": ([1, 10, 100, 1000], mixed),
}


def draw(curves: dict[str, list[tuple[int, float, float]]]) -> None:
    """growth.png: time and memory of every curve, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6.5), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(2, 4).flat, curves.items(), strict=True):
        values, times, memory = zip(*points, strict=True)
        axes.loglog(values, times, color="#0072b2", marker="o", label="time, ms")
        axes.loglog(values, memory, color="#d55e00", marker="s", label="peak memory, MiB")
        axes.set(title=name)
        axes.set_xticks(values, [str(value) for value in values])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(Path(__file__).with_name("growth.png"), dpi=110)
