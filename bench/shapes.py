"""On a GPU only: the shapes of Qwen2.5-0.5B and Llama-3.1-8B with random weights in bfloat16.

Rollouts beside `generate`, and a learner step beside LoRA of rank 16, each with its
peak memory. Factors are made up, in the right shapes: the time of a step does not depend on their values. A shape that does not fit
into the memory is said by name and left out. Without a GPU this part is empty.
"""

from collections.abc import Iterator
from typing import Any

import torch
import transformers

from bench._measure import MIB, Row, Side, installed, peak, peer, row, side_by_side
from bench.growth import made_up_factors
from bench.learner import gradient
from bench.rollout import QWEN_HALF, generate, ours, questions, random_base, rates
from svf_rl.adapter import Adapter
from svf_rl.adapters import ADAPTERS, make_adapter
from svf_rl.base.load import Base, BaseConfig, load_base
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.types import Episode

LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
SHAPES: dict[str, tuple[dict[str, Any], Any]] = {
    "Qwen2.5-0.5B shape": (QWEN_HALF, transformers.Qwen2Config),
    "Llama-3.1-8B shape": (LLAMA_8B, transformers.LlamaConfig),
}
FLIGHT, NEW, EPISODES, LENGTH, ROUNDS = 64, 128, 16, 256, 3


def run() -> Iterator[Row]:
    if not torch.cuda.is_available():
        print("shapes: there is no CUDA GPU, so this part is left out")
        return
    embedded = load_base(BaseConfig())
    prompts = questions(embedded, FLIGHT)
    for name, (shape, kind) in SHAPES.items():
        try:
            base = random_base(embedded, shape, torch.bfloat16, kind)
            yield from rolled_out(name, base, prompts)
            yield from learnt(name, base)
        except torch.cuda.OutOfMemoryError as error:
            print(f"{name}: does not fit into this GPU's memory ({error}); left out")
        torch.cuda.empty_cache()


def rolled_out(name: str, base: Base, prompts: list[list[int]]) -> Iterator[Row]:
    mine, plain = ours(base, prompts, FLIGHT, NEW), generate(base, prompts, FLIGHT, NEW)
    found = rates({"ours": mine, "generate": plain}, ROUNDS, f"{name}, rollout")
    yield row(f"{name}, rollout, {FLIGHT} in flight, beside generate", *found, "useful tokens/s", "≥ 1.5")
    yield row(f"{name}, rollout, peak memory", peak(mine), peak(plain), "MiB")


def learnt(name: str, base: Base) -> Iterator[Row]:
    peer("peft")
    factors = made_up_factors(base, 10**6)
    size = sum(t.nbytes for f in factors.values() for t in f) / MIB
    mine = step(base, SVFAdapter(base.model, factors))
    theirs = step(base, make_adapter(base, ADAPTERS["lora"].settings()))
    times = side_by_side(mine, theirs, ROUNDS, f"{name}, learner")
    yield row(f"{name}, learner step, beside LoRA rank 16", *times, "s", "≤ 1.3")
    yield row(f"{name}, learner, peak memory of the step", peak(mine), peak(theirs), "MiB", factors=size)


def step(base: Base, adapter: Adapter) -> Side:
    """A step on EPISODES episodes of LENGTH random tokens, the latter half the model's own."""
    ids = torch.randint(0, 2000, (EPISODES, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    own = [False] * (LENGTH // 2) + [True] * (LENGTH // 2)
    episodes = [Episode(row, own, [0.0] * (LENGTH // 2), 1.0, "", "stop", "", "") for row in ids]

    def side() -> None:
        with installed(adapter):
            gradient(base, adapter, episodes)

    return side
