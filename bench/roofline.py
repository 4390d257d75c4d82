"""How near the kernel-bound numbers are to this machine's limits: operations and bytes counted, share of the measured peak.

The peaks are measured at the thread count in use: the best of several square float32 products, and the best of several sums
over a block that no cache holds. The bound of a number is the larger of operations / peak and bytes / bandwidth; its share is
bound / time. "products" is the time of nothing but the same matrix products, one after another in the same shapes: what lies
between it and the bound is the library's product of small matrices, what lies between it and the time is everything else.

Counted are two operations for each multiplication and addition of the matrix products and of attention; bytes are weights once,
activations in and out of every product once, keys and values once. The learner's step is forward, gradient of the activations
and gradient of each adapted weight (three times the forward), its projection on U and V, and the head, forward and back. A weight
that stays in a cache may beat its bytes' bound; the embedded base is small enough.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from bench._measure import Row, Side, medians, row, seconds, turns
from bench.learner import ours_side, some_episodes
from bench.rollout import NEW, QUESTIONS, ours, questions
from svf_rl.base.load import Base, BaseConfig, load_base
from svf_rl.learn.scores import indices_by_row, may_share, row_length
from svf_rl.rollout.engine import make_forward
from svf_rl.rollout.sampler import Sampling, sample
from svf_rl.types import Episode

ROUNDS, POSITION, PROMPT, ROWS = 9, 32, 32, 32


class Product(NamedTuple):
    """[m, k] x [k, n], so many times."""

    m: int
    k: int
    n: int
    times: int


class Case(NamedTuple):
    """side: what is timed.  products: its matrix products.  more: operations and bytes of attention."""

    name: str
    side: Side
    products: list[Product]
    more: tuple[float, float]


@torch.no_grad()
def run() -> Iterator[Row]:
    """ours: milliseconds.  theirs: the bound."""
    base = load_base(BaseConfig())
    flops, bandwidth = peak_flops(base.device), peak_bandwidth(base.device)
    yield {
        **row("peak of float32 products, and of memory", flops / 1e9, bandwidth / 1e9, "Gflop/s, GB/s"),
        "ratio": flops / bandwidth,
    }
    gaps = []
    for case in cases(base):
        found = measured(case, base.device, flops, bandwidth)
        gaps.append((found["ratio"], case.name))
        yield found
    share, name = min(gaps)
    print(f"largest gap: {name}, at {share:.0%} of what this machine could do")


def measured(case: Case, device: torch.device, flops: float, bandwidth: float) -> Row:
    """Time beside the bound, and the time of the products alone."""
    operations = sum(2 * p.m * p.k * p.n * p.times for p in case.products) + case.more[0]
    moved = sum(4 * (p.m * p.k + p.k * p.n + p.m * p.n) * p.times for p in case.products) + case.more[1]
    times = turns({"all": case.side, "products": partial(multiply, case.products, device)}, ROUNDS, case.name)
    time, alone = medians(times)
    bound = max(operations / flops, moved / bandwidth)
    by = "operations" if operations / flops > moved / bandwidth else "bytes"
    counted = {"Gflop": operations / 1e9, "MB": moved / 1e6, "bound by": by, "products ms": 1000 * alone}
    name = f"{case.name}: time, bound by {by}; products alone {1000 * alone:.1f} ms"
    return {**row(name, 1000 * time, 1000 * bound, "ms"), "ratio": bound / time, **counted}


@torch.enable_grad()  # type: ignore[misc]
def cases(base: Base) -> list[Case]:
    c = base.model.config
    episodes = some_episodes(base)
    step, _ = ours_side(base, "svf", episodes)
    prompts = torch.randint(0, c.vocab_size, (ROWS, PROMPT), device=base.device)
    tokens, square = ROWS * PROMPT, 4 * c.num_hidden_layers * c.num_attention_heads * c.head_dim
    seen = (square * ROWS * PROMPT**2 / 2, 0.0)
    whole = [*layers(c, tokens), Product(tokens, c.hidden_size, c.vocab_size, 1)]
    return [
        *[rolling(base, rows) for rows in (64, 256)],
        *[decoding(base, rows) for rows in (64, 256)],
        Case(f"prefill of {ROWS} x {PROMPT}", prefilling(base, prompts), layers(c, tokens), seen),
        Case(f"merged forward of {ROWS} x {PROMPT}", lambda: base.model(prompts), whole, seen),
        Case(f"learner step, {len(episodes)} episodes", step_with_gradient(step), learning(base, episodes), attended(c, episodes)),
    ]


def rolling(base: Base, rows: int) -> Case:
    """A whole rollout of bench/rollout.py: every token once, the last layer and the head where they are needed."""
    c, prompts = base.model.config, questions(base, QUESTIONS)
    found = sample(base, prompts, Sampling(NEW, 1.0, rows), range(len(prompts)))
    asked, drawn = sum(map(len, prompts)), sum(len(answer.ids) for answer in found)
    seen = sum(t for p, a in zip(prompts, found, strict=True) for t in range(len(p) + 1, len(p) + len(a.ids)))
    width = c.num_hidden_layers * c.num_attention_heads * c.head_dim
    qkv, *rest = layers(c, asked + drawn - len(prompts))
    unneeded = [Product(asked - len(prompts), k, n, -1) for _, k, n, _ in rest]
    operations = 4.0 * width * (seen + sum(len(p) ** 2 / 2 for p in prompts))
    products = [qkv, *rest, *unneeded, Product(drawn, c.hidden_size, c.vocab_size, 1)]
    return Case(f"rollout, {rows} in flight", ours(base, prompts, rows, NEW), products, (operations, 8.0 * width * seen))


def decoding(base: Base, rows: int) -> Case:
    """One token of every row at position POSITION by engine.py, the head included."""
    c, device = base.model.config, base.device
    forward = ready(base, rows, torch.zeros(rows, POSITION, dtype=torch.long, device=device))
    ids, positions = torch.zeros(rows, dtype=torch.long, device=device), torch.full((rows,), POSITION, device=device)
    side = lambda: base.logits(forward.decode(ids, positions))  # noqa: E731
    width = c.num_hidden_layers * c.num_attention_heads * c.head_dim
    products = [*layers(c, rows), Product(rows, c.hidden_size, c.vocab_size, 1)]
    return Case(f"decode step of {rows} rows", side, products, (4.0 * rows * POSITION * width, 8.0 * rows * POSITION * width))


def ready(base: Base, rows: int, ids: torch.Tensor) -> Any:
    """A forward pass that remembers these prompts."""
    forward = make_forward(base, rows, POSITION + 16)
    every = torch.arange(rows, device=base.device)
    forward.prefill(ids, torch.full((rows,), ids.shape[1], device=base.device), every, every)
    return forward


def prefilling(base: Base, ids: torch.Tensor) -> Side:
    forward = make_forward(base, len(ids), POSITION + 16)
    every = torch.arange(len(ids), device=base.device)
    lengths = torch.full((len(ids),), ids.shape[1], device=base.device)
    return lambda: forward.prefill(ids, lengths, every, every)


def step_with_gradient(step: Callable[[], object]) -> Side:
    def side() -> None:
        with torch.enable_grad():
            step()

    return side


def layers(c: Any, tokens: int) -> list[Product]:
    """The linear layers of a forward pass."""
    heads, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    shapes = [(c.hidden_size, heads + 2 * kv), (heads, c.hidden_size), (c.hidden_size, 2 * c.intermediate_size)]
    return [Product(tokens, k, n, c.num_hidden_layers) for k, n in [*shapes, (c.intermediate_size, c.hidden_size)]]


def learning(base: Base, episodes: list[Episode]) -> list[Product]:
    """Forward and both gradients of the layers, the projection of each G on U, and the head on own tokens, forward and back."""
    c, rows = base.model.config, indices_by_row(episodes, may_share(base))
    tokens, own = sum(row_length([episodes[i] for i in row]) for row in rows), sum(len(e.logprobs) for e in episodes)
    forward = layers(c, tokens)
    back = [Product(p.m, p.n, p.k, p.times) for p in forward] + [Product(p.n, p.m, p.k, p.times) for p in forward]
    projected = [Product(min(p.n, p.k), p.n, p.k, p.times) for p in forward]
    return [*forward, *back, *projected, Product(own, c.hidden_size, c.vocab_size, 2)]


def attended(c: Any, episodes: list[Episode]) -> tuple[float, float]:
    """Operations of attention, forward and backward, over what each token sees."""
    width = c.num_hidden_layers * c.num_attention_heads * c.head_dim
    return 3 * 4 * width * sum(len(e.ids) ** 2 / 2 for e in episodes), 0.0


def multiply(products: list[Product], device: torch.device) -> None:
    for p in products:
        a, b = torch.ones(p.m, p.k, device=device), torch.ones(p.k, p.n, device=device)
        for _ in range(p.times):  # none of those that are taken off
            a @ b


def peak_flops(device: torch.device, size: int = 1536) -> float:
    a = torch.ones(size, size, device=device)
    return 2.0 * size**3 / min(seconds(lambda: a @ a) for _ in range(8))


def peak_bandwidth(device: torch.device, megabytes: int = 1024) -> float:
    a = torch.ones(megabytes << 18, device=device)
    return a.nbytes / min(seconds(a.sum) for _ in range(5))
