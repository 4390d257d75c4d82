"""Useful tokens per second of rollouts: this sampler beside transformers' `generate` and its continuous batching `generate_batch`.

Every side answers the same 256 questions of the math environment with the same base, temperature 1, at most 64 tokens and the
stop tokens of the base, with torch's default number of threads, in one process. A token is useful up to and with the first stop
token. `generate` gets its prompts in batches of the number in flight, padded on the left and sorted by length; `generate_batch`
all of them at once, with its own default of how many are in flight.

The random base of the shape of Qwen2.5-0.5B never stops by chance, so every side writes the same number of tokens. It is run in
float32 and in bfloat16; the row has the faster type of each side.
"""

import contextlib
import dataclasses
import io
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers

from bench._measure import Row, Side, medians, row, turns
from svf_rl.base.load import Base, BaseConfig, fingerprint, load_base
from svf_rl.rollout.episodes import EnvConfig, make_env, prompts_of
from svf_rl.rollout.sampler import Sampling, sample

QUESTIONS, NEW, ROUNDS = 256, 64, 3
LARGE_QUESTIONS, LARGE_NEW, LARGE_ROUNDS, FEW = 32, 8, 2, 8
QWEN_HALF = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def run() -> Iterator[Row]:
    base = load_base(BaseConfig())
    prompts = questions(base, QUESTIONS)
    for flight in (64, 256):
        sides = {"ours": ours, "generate": generate, "generate_batch": generate_batch}
        made = {name: side(base, prompts, flight, NEW) for name, side in sides.items()}
        mine, plain, batched = rates(made, ROUNDS, f"{flight} in flight")
        yield row(f"rollout, {flight} in flight, beside generate", mine, plain, "useful tokens/s", "≥ 5")
        yield row(f"rollout, {flight} in flight, beside generate_batch", mine, batched, "useful tokens/s", "≥ 20")
    yield large(base, prompts[:LARGE_QUESTIONS])


def questions(base: Base, count: int) -> list[list[int]]:
    """Distinct prompts of the training split."""
    return [base.codec.prompt(prompt) for prompt in prompts_of(make_env(EnvConfig()), "train", range(count))]


def rates(sides: dict[str, Side], rounds: int, what: str) -> list[float]:
    """Median tokens per second of each side; a side returns its number of tokens."""
    written: dict[str, list[int]] = {name: [] for name in sides}
    kept = {name: lambda name=name: written[name].append(sides[name]()) for name in sides}
    taken = turns(kept, rounds, what)  # type: ignore[arg-type]
    return medians({name: [n / s for n, s in zip(written[name][-rounds:], taken[name], strict=True)] for name in sides})


def ours(base: Base, prompts: list[list[int]], flight: int, tokens: int) -> Side:
    sampling = Sampling(tokens, 1.0, flight)
    return lambda: sum(len(c.ids) for c in sample(base, prompts, sampling, range(len(prompts))))


def generate(base: Base, prompts: list[list[int]], flight: int, tokens: int) -> Side:
    ordered = sorted(prompts, key=len)

    def batch(some: list[list[int]]) -> int:
        width = max(map(len, some))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in some], device=base.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in some], device=base.device)
        written = base.model.generate(ids, attention_mask=mask, generation_config=settings(base, tokens))
        return useful(written[:, width:].tolist(), base.codec.stop_ids)

    return lambda: sum(batch(ordered[i : i + flight]) for i in range(0, len(ordered), flight))


def generate_batch(base: Base, prompts: list[list[int]], _: int, tokens: int) -> Side:
    def run() -> int:
        logging.disable(logging.WARNING)
        with contextlib.redirect_stderr(io.StringIO()):  # its progress
            found = base.model.generate_batch(prompts, generation_config=settings(base, tokens), progress_bar=False)
        logging.disable(logging.NOTSET)
        if len(found) != len(prompts):
            raise RuntimeError(f"generate_batch answered {len(found)} of {len(prompts)} prompts")
        return useful([output.generated_tokens for output in found.values()], base.codec.stop_ids)

    return run


def settings(base: Base, tokens: int) -> transformers.GenerationConfig:
    """Plain sampling: no cut of the distribution."""
    stops = sorted(stop for stop in base.codec.stop_ids if stop >= 0) or None
    return transformers.GenerationConfig(
        max_new_tokens=tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=stops, pad_token_id=0
    )


def useful(rows: Sequence[Sequence[int]], stops: frozenset[int]) -> int:
    """Tokens up to and with the first stop."""
    return sum(next((i + 1 for i, token in enumerate(row) if token in stops), len(row)) for row in rows)


def large(embedded: Base, prompts: list[list[int]]) -> Row:
    """The 0.5 B shape: of both sides the type that is faster on the beginnings of the prompts; then those in turn."""
    bases = {dtype: random_base(embedded, QWEN_HALF, dtype) for dtype in (torch.float32, torch.bfloat16)}
    both = {f"{side.__name__} {dtype}": (side, dtype) for side in (ours, generate) for dtype in bases}
    short = [prompt[:FEW] for prompt in prompts]
    trials = {name: side(bases[dtype], short, len(short), 2) for name, (side, dtype) in both.items()}
    tried = turns(trials, 1, "0.5B shape, types", warm=0)
    best = [min((name for name in both if both[name][0] is side), key=lambda name: tried[name]) for side in (ours, generate)]
    mine, plain = (both[name][0](bases[both[name][1]], prompts, len(prompts), LARGE_NEW) for name in best)
    found = rates({"ours": mine, "generate": plain}, LARGE_ROUNDS, "0.5B shape")
    types = " and ".join(str(both[name][1]).removeprefix("torch.") for name in best)
    name = f"rollout, 0.5B shape, {len(prompts)} in flight, {LARGE_NEW} tokens, beside generate"
    return row(name, *found, "useful tokens/s", "≥ 1.5", types=types)


def random_base(embedded: Base, shape: dict[str, Any], dtype: torch.dtype, kind: Any = transformers.Qwen2Config) -> Base:
    """Random weights in that shape, with the embedded base's tokenizer and no stop token."""
    torch.manual_seed(0)
    with torch.device(embedded.device):
        model = transformers.AutoModelForCausalLM.from_config(kind(**shape), dtype=dtype)
    model.requires_grad_(False).eval()
    codec = dataclasses.replace(embedded.codec, stop_ids=frozenset({-1}))
    name = f"random {kind.model_type}"
    return dataclasses.replace(embedded, model=model, codec=codec, name=name, fingerprint=fingerprint(model), context=2048)
