"""Prompt ids in, completions out: batched sampling with a key/value cache.

Float32 bases on the processor are run by native.py, whole rollouts at a time. Everything else is run here, a step at a time,
with the forward pass of engine.py, or of the library.

The batch has a fixed number of rows. A row that finishes is retired at once; when enough rows are free (an eighth), the next
prompts, longest first and so of similar lengths, are prefilled together, equal prompts once, and take their place; when no prompt
is left, the batch shrinks. So hardly a step is spent on finished rows. Ids and float32 log-probabilities are recorded as they are
drawn and nothing is tokenised again.

Every row draws from its own stream of uniform numbers, made from its own seed: token = the first whose cumulative probability
exceeds the next number. A completion therefore does not depend on which rows it shared a batch with.

Source: the refill of huggingface/transformers generation/continuous_batching; the shared prefill of karpathy/nanochat
nanochat/engine.py.
Differs from the source: every row writes into one block of keys and values at its own position; there are no pages and no
scheduler.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from svf_rl.base.load import Base
from svf_rl.errors import UserError
from svf_rl.rollout.engine import Unknown, make_forward
from svf_rl.rollout.native import Native
from svf_rl.types import Completion

PREFILL = 1024  # padded tokens of prompts that are run at once
BLOCK = 64  # entries of the vocabulary that are summed before the cumulative sum: five times as fast as a long one
BELOW = 1 - 2**-23  # times a float32, is less than it


@dataclass(frozen=True)
class Sampling:
    """How to write: at most `max_tokens`, at a temperature (0 is greedy), with up to `rows` completions at a time."""

    max_tokens: int = 64
    temperature: float = 1.0
    rows: int = 128

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.rows < 1 or not 0 <= self.temperature < math.inf:
            raise UserError(f"max_tokens and rows must be at least 1, temperature at least 0; found {self}")


@torch.no_grad()
def sample(
    base: Base,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    kinds: Sequence[int] | None = None,
    choose: Callable[[Int[Tensor, " rows"]], None] | None = None,
    ended: Callable[[int, Completion], None] | None = None,
) -> list[Completion]:
    """One completion per prompt, in order; seeds[i] decides the draws of completion i.

    kinds[i] says what completion i is written with, e.g. the number of an expert: before every forward pass, `choose` is called
    with the kinds of its rows (of some earlier row where one is idle). `ended` is told every completion, by its index, while others
    are still being written. UserError for an empty prompt, or one that leaves no room in the base's context.
    """
    check_prompts(base, prompts)
    if not prompts:
        return []
    found: dict[int, Completion] = {}
    with closing(_run(base, prompts, sampling, seeds, kinds or [0] * len(prompts), choose or _nothing)) as batch:
        for some in batch:
            found.update(some)
            for index, completion in some.items() if ended else ():
                ended(index, completion)  # type: ignore[misc]
    return [found[i] for i in range(len(prompts))]


def _run(
    base: Base,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    kinds: Sequence[int],
    choose: Callable[[Tensor], None],
) -> Generator[dict[int, Completion]]:
    """Completions as they end, by what is fastest of that which can run this base as it now is."""
    rows, capacity = min(sampling.rows, len(prompts)), min(base.context, max(map(len, prompts)) + sampling.max_tokens)
    try:
        native = Native(base, rows, capacity, torch.tensor(sorted(set(kinds))), choose)
    except Unknown:
        yield from _Batch(base, prompts, sampling, seeds, kinds, choose, capacity).run()
        return
    uniforms = torch.stack([uniform_numbers(seed, sampling.max_tokens) for seed in seeds])
    limits = [min(sampling.max_tokens, base.context - len(prompt)) for prompt in prompts]
    tagged = [(kind, *prompt) for kind, prompt in zip(kinds, prompts, strict=True)]
    yield from native.run(tagged, sampling.max_tokens, sampling.temperature, uniforms, limits, sorted(base.codec.stop_ids))


def _nothing(kinds: Tensor) -> None:
    """All rows are of one kind."""


def uniform_numbers(seed: int, n: int) -> Float[Tensor, " n"]:
    """What a completion draws its tokens with; the first are the same for every n."""
    return torch.rand(n, generator=torch.Generator().manual_seed(seed))


def draw_seed(*parts: int) -> int:
    """A 62-bit seed from whatever tells one completion from the others, e.g. (seed of the run, step, episode)."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 2


def check_prompts(base: Base, prompts: Collection[Sequence[int]]) -> None:
    """UserError for a prompt of no tokens, or one as long as the context."""
    for prompt in prompts:
        if not prompt:
            raise UserError("expected a prompt of at least one token, found an empty one; give some text")
        if len(prompt) >= base.context:
            raise UserError(f"a prompt of {len(prompt)} tokens leaves no room in the base's context of {base.context}; shorten it")


class _Batch:
    """The rows being written. Row r holds completion index[r], of prompt length start[r], with count[r] tokens so far."""

    def __init__(
        self,
        base: Base,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        kinds: Sequence[int],
        choose: Callable[[Tensor], None],
        capacity: int,
    ) -> None:
        self.base, self.sampling, self.seeds, self.choose = base, sampling, seeds, choose
        self.prompts = [(kind, *prompt) for kind, prompt in zip(kinds, prompts, strict=True)]
        self.queue = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), self.prompts[i]))  # copies side by side
        rows, device = min(sampling.rows, len(prompts)), base.device
        choose(torch.tensor([kinds[0], kinds[-1]]))
        self.forward = make_forward(base, rows, capacity)
        self.stops = torch.tensor(sorted(base.codec.stop_ids), device=device)
        self.index = torch.full((rows,), -1)
        self.start, self.count, self.limit, self.kind = (torch.zeros(rows, dtype=torch.long) for _ in range(4))
        self.ids = torch.zeros(rows, sampling.max_tokens, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(rows, sampling.max_tokens, device=device)
        self.uniforms = torch.zeros(rows, sampling.max_tokens, device=device)

    def run(self) -> Iterator[dict[int, Completion]]:
        while self.queue or len(self.index):
            free = (self.index < 0).nonzero().flatten()
            enough = max(1, len(self.index) // 8)
            if self.queue and len(free) >= min(len(self.queue), enough):
                self._admit(free)
            elif not self.queue and len(free) >= enough:
                self._shrink()
            else:
                self._decode()
            yield dict(self._retire())

    def _admit(self, free: Tensor) -> None:
        """Prefill the longest prompts of the queue into free rows and draw their first tokens."""
        taken, unique = self._next(len(free))
        rows, width = free[: len(taken)], len(unique[0]) - 1
        for row, index in zip(rows.tolist(), taken, strict=True):
            self._assign(row, index)
        ids = torch.tensor([[*prompt[1:], *[0] * (width + 1 - len(prompt))] for prompt in unique])
        lengths = torch.tensor([len(prompt) - 1 for prompt in unique])
        copies = torch.tensor([unique.index(self.prompts[index]) for index in taken])
        self.choose(torch.tensor([prompt[0] for prompt in unique]))
        hidden = self.forward.prefill(*(t.to(self.base.device) for t in (ids, lengths, rows, copies)))
        self._record(self.base.logits(hidden)[copies.to(self.base.device)], rows)

    def _next(self, rows: int) -> tuple[list[int], list[tuple[int, ...]]]:
        """What to prefill together: completions for so many rows or fewer, and their prompts, at most PREFILL padded tokens."""
        taken: list[int] = []
        unique: list[tuple[int, ...]] = []
        while self.queue and len(taken) < rows:
            prompt = self.prompts[self.queue[-1]]
            if not unique or prompt != unique[-1]:
                if unique and (len(unique) + 1) * len(unique[0]) > PREFILL:
                    break
                unique.append(prompt)
            taken.append(self.queue.pop())
        return taken, unique

    def _assign(self, row: int, index: int) -> None:
        kind, *prompt = self.prompts[index]
        self.index[row], self.start[row], self.count[row], self.kind[row] = index, len(prompt), 0, kind
        self.limit[row] = min(self.sampling.max_tokens, self.base.context - len(prompt))
        self.uniforms[row] = uniform_numbers(self.seeds[index], self.sampling.max_tokens).to(self.uniforms.device)

    def _decode(self) -> None:
        """One more token for every row; idle rows (waiting for a refill) compute along and are ignored."""
        last = (self.count - 1).clamp(min=0)
        position, device = self.start + last, self.base.device
        ids = self.ids.gather(1, last[:, None].to(device))[:, 0]
        self.choose(self.kind)
        hidden = self.forward.decode(ids, position.to(device))
        busy = (self.index >= 0).nonzero().flatten()
        self._record(self.base.logits(hidden[busy.to(device)]), busy)

    def _record(self, logits: Float[Tensor, "some vocabulary"], rows: Int[Tensor, " some"]) -> None:
        """Draw and write down the next token of some rows."""
        place = rows.to(logits.device), self.count[rows].to(logits.device)
        self.ids[place], self.logprobs[place] = draw(logits, self.sampling.temperature, self.uniforms[place])
        self.count[rows] += 1

    def _retire(self) -> Iterator[tuple[int, Completion]]:
        busy = self.index >= 0
        last = self.ids.gather(1, (self.count - 1).clamp(min=0)[:, None].to(self.ids.device))[:, 0]
        stopped = torch.isin(last, self.stops).cpu() & busy
        for row in (stopped | (busy & (self.count >= self.limit))).nonzero().flatten().tolist():
            n = int(self.count[row])
            stop = "stop" if stopped[row] else "length"
            yield int(self.index[row]), Completion(self.ids[row, :n].tolist(), self.logprobs[row, :n].tolist(), stop)
            self.index[row] = -1

    def _shrink(self) -> None:
        keep = compacted(self.index >= 0)
        rows = (self.index, self.start, self.count, self.limit, self.kind)
        self.index, self.start, self.count, self.limit, self.kind = (x[keep] for x in rows)
        on_device = keep.to(self.base.device)
        self.ids, self.logprobs, self.uniforms = (x[on_device] for x in (self.ids, self.logprobs, self.uniforms))
        self.forward.keep(on_device)


def compacted(alive: Bool[Tensor, " rows"]) -> Int[Tensor, " kept"]:
    """The rows that are alive, in an order that moves few of them: the last of them take the places of the others."""
    keep = torch.arange(int(alive.sum()))
    dead = ~alive[: len(keep)]
    keep[dead] = alive[len(keep) :].nonzero().flatten() + len(keep)
    return keep


def draw(
    logits: Float[Tensor, "rows vocabulary"], temperature: float, uniform: Float[Tensor, " rows"]
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """A token per row and its log-probability under softmax(logits / temperature); greedy at temperature 0."""
    scores = logits if temperature in (0, 1) else logits / temperature
    top = scores.amax(-1, keepdim=True)
    mass = (scores - top).exp_()
    missing = -mass.shape[-1] % BLOCK
    blocks = (F.pad(mass, (0, missing)) if missing else mass).unflatten(-1, (-1, BLOCK))
    sums = blocks.sum(-1)
    ends = sums.cumsum(-1)
    token = logits.argmax(-1, keepdim=True) if temperature == 0 else _find(blocks, sums, ends, uniform[:, None])
    return token[:, 0], (scores.gather(1, token) - top - ends[:, -1:].log())[:, 0]


def _find(
    blocks: Float[Tensor, "rows n size"],
    sums: Float[Tensor, "rows n"],
    ends: Float[Tensor, "rows n"],
    uniform: Float[Tensor, "rows 1"],
) -> Int[Tensor, "rows 1"]:
    """The first place where the cumulative mass exceeds uniform * total: the block, then the place in it. It has mass."""
    total = ends[:, -1:]
    wanted = torch.minimum(uniform * total, total * BELOW)
    block = torch.searchsorted(ends, wanted, right=True)
    inner = blocks.take_along_dim(block[:, :, None], 1)[:, 0].cumsum(-1)
    rest = (wanted - ends.gather(1, block) + sums.gather(1, block)).clamp_(min=0)
    return block * BLOCK + torch.searchsorted(inner, torch.minimum(rest, inner[:, -1:] * BELOW), right=True)
