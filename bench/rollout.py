"""Useful tokens per second of rollouts: this sampler beside transformers' `generate` and its continuous batching `generate_batch`.

    python bench/rollout.py             # embedded base, 64 and 256 completions in flight
    python bench/rollout.py --half      # and a random base of the shape of Qwen2.5-0.5B

Every side answers the same questions of the math environment with the same base, temperature 1, at most 64 tokens and the stop
tokens of the base, with torch's default number of threads, in one process. The sides take turns, so that other work on the machine
slows all of them; the ratio is that of the medians. A token is useful up to and with the first stop token. `generate` gets its
prompts in batches padded on the left, `generate_batch` all of them at once, with its
own default of how many are in flight.
"""

import argparse
import contextlib
import dataclasses
import io
import logging
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import transformers

from svf_rl.base.load import Base, BaseConfig, fingerprint, load_base
from svf_rl.rollout.episodes import EnvConfig, make_env
from svf_rl.rollout.sampler import Sampling, sample

NEW = 64
Side = Callable[[], int]
QWEN_HALF = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def questions(base: Base, count: int) -> list[list[int]]:
    """Distinct prompts of the training split."""
    env = make_env(EnvConfig())
    return [base.codec.prompt(env.reset(options={"split": "train", "index": i})[0]) for i in range(count)]


def useful(rows: Sequence[Sequence[int]], stops: frozenset[int]) -> int:
    """Tokens up to and with the first stop."""
    return sum(next((i + 1 for i, token in enumerate(row) if token in stops), len(row)) for row in rows)


def ours(base: Base, prompts: list[list[int]], rows: int, tokens: int) -> Side:
    sampling = Sampling(tokens, 1.0, rows)
    return lambda: sum(len(c.ids) for c in sample(base, prompts, sampling, range(len(prompts))))


def settings(base: Base, tokens: int, **more: Any) -> transformers.GenerationConfig:
    """Plain sampling: no cut of the distribution."""
    stops = sorted(base.codec.stop_ids)
    return transformers.GenerationConfig(
        max_new_tokens=tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=stops, pad_token_id=0, **more
    )


def generate(base: Base, prompts: list[list[int]], rows: int, tokens: int) -> Side:
    def batch(some: list[list[int]]) -> int:
        width = max(map(len, some))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in some])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in some])
        written = base.model.generate(ids, attention_mask=mask, generation_config=settings(base, tokens))
        return useful(written[:, width:].tolist(), base.codec.stop_ids)

    return lambda: sum(batch(prompts[i : i + rows]) for i in range(0, len(prompts), rows))


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


def measure(sides: dict[str, Side], repeats: int) -> dict[str, float]:
    """Median useful tokens per second of each side; they take turns, after one run each that is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            tokens = side()
            if repeat:
                rates[name].append(tokens / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in rates.items()}


def results(name: str, sides: dict[str, Side], repeats: int) -> list[dict[str, Any]]:
    """One row for each side beside the first."""
    (_, mine), *others = measure(sides, repeats).items()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}"
    common = {"ours": mine, "unit": "useful tokens/s", "versions": versions, "threads": torch.get_num_threads()}
    return [{"name": f"{name}, beside {other}", "theirs": theirs, "ratio": mine / theirs, **common} for other, theirs in others]


def qwen_half(embedded: Base) -> Base:
    """Random weights in the shape of Qwen2.5-0.5B, with the embedded base's tokenizer; no stop token comes by chance."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.Qwen2Config(**QWEN_HALF), dtype=torch.float32)
    model.requires_grad_(False).eval()
    return dataclasses.replace(embedded, model=model, name="Qwen2.5-0.5B shape", fingerprint=fingerprint(model), context=2048)


def run(repeats: int = 3, half: bool = True) -> list[dict[str, Any]]:
    """All comparisons, as rows of name, ours, theirs, unit, ratio, versions, threads."""
    base = load_base(BaseConfig())
    prompts, rows = questions(base, 256), []
    for flight in (64, 256):
        sides = {"ours": ours, "generate": generate, "generate_batch": generate_batch}
        made = {name: side(base, prompts, flight, NEW) for name, side in sides.items()}
        rows += results(f"rollout, embedded base, {flight} in flight", made, repeats)
    if half:
        large = qwen_half(base)
        made = {name: side(large, prompts[:32], 32, 8) for name, side in (("ours", ours), ("generate", generate))}
        rows += results("rollout, 0.5B shape in float32, 32 in flight, 8 tokens", made, 1)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--half", action="store_true")
    arguments = parser.parse_args()
    for row in run(arguments.repeats, arguments.half):
        print(f"{row['name']:60} {row['ours']:8.0f} {row['theirs']:8.0f} {row['unit']}   {row['ratio']:.2f} x")


if __name__ == "__main__":
    main()
