"""Serving many experts: a merged expert's forward beside the base's, switching experts, and different experts in one batch.

    python bench/serving.py

The other side of switching and of the mixed batch is `peft` with LoRA of rank 16 on the same matrices: `set_adapter`
and a merge, and `generate` with `adapter_names`. Both sides take turns on the same prompts, so that other work slows both; figures
are medians. Greedy, a fixed number of tokens for everyone, so that both sides write equally much.
"""

import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import peft
import torch

from svf_rl.base.load import Base, BaseConfig, load_base
from svf_rl.progress import Progress
from svf_rl.rollout.episodes import EnvConfig, make_env, prompts_of
from svf_rl.rollout.sampler import Sampling, sample
from svf_rl.svf.adapter import SVFAdapter, SVFConfig, make_svf
from svf_rl.types import Expert

REPEATS, EXPERTS, ROWS, TOKENS = 5, 8, 64, 32


def run() -> list[dict[str, Any]]:
    """The ratio is that of theirs to ours, above 1 is faster than the other side."""
    base, other = load_base(BaseConfig()), load_base(BaseConfig())
    adapter = make_svf(base, SVFConfig(), Progress(quiet=True))
    experts = [random_expert(adapter, seed) for seed in range(EXPERTS)]
    prompts = [base.codec.prompt(p) for p in prompts_of(make_env(EnvConfig()), "test", range(ROWS))]
    ids = torch.tensor([p[:16] for p in prompts if len(p) >= 16])
    plain, tuned = copy.deepcopy(other.model), lora_model(other)
    adapter.install()
    adapter.load_expert(experts[0])
    with torch.no_grad():
        forward = pair("merged expert's forward, beside the base's", lambda: base.model(ids), lambda: plain(ids))
        switch = pair("switching the expert and one forward, beside peft", *switching(base, adapter, experts, tuned, ids[:1]))
        mixed = pair(f"{EXPERTS} experts in a batch of {ROWS}, beside peft", *batches(base, adapter, experts, tuned, prompts))
    return [forward, switch, mixed]


def pair(name: str, ours: Callable[[], object], theirs: Callable[[], object]) -> dict[str, Any]:
    taken = [(milliseconds(ours), milliseconds(theirs)) for _ in range(REPEATS + 1)][1:]
    mine, other = (statistics.median(side) for side in zip(*taken, strict=True))
    return {"name": name, "ours": mine, "theirs": other, "unit": "ms", "ratio": other / mine}


def milliseconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - begun)


def random_expert(adapter: SVFAdapter, seed: int) -> Expert:
    stream = torch.Generator().manual_seed(seed)
    return Expert({name: 1 + 0.05 * torch.randn(s.shape, generator=stream) for name, s in adapter.spectra.items()})


def lora_model(base: Base) -> Any:
    """peft's model with as many adapters, all matrices, rank 16, B not zero."""
    config = peft.LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(base.model, config, adapter_name="0")
    for i in range(1, EXPERTS):
        model.add_adapter(str(i), config)
    return model.eval()


def switching(
    base: Base, adapter: SVFAdapter, experts: list[Expert], tuned: Any, ids: torch.Tensor
) -> tuple[Callable[[], object], Callable[[], object]]:
    """A round of all experts, one short forward each; peft merges after each switch, as it must for the same speed afterwards."""

    def ours() -> None:
        for expert in experts:
            adapter.load_expert(expert)
            base.model(ids)

    def theirs() -> None:
        for i in range(EXPERTS):
            tuned.set_adapter(str(i))
            tuned.merge_adapter()
            tuned(ids)
            tuned.unmerge_adapter()

    return ours, theirs


def batches(
    base: Base, adapter: SVFAdapter, experts: list[Expert], tuned: Any, prompts: list[list[int]]
) -> tuple[Callable[[], object], Callable[[], object]]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    names = [str(i % EXPERTS) for i in range(len(prompts))]
    kinds = [i % EXPERTS for i in range(len(prompts))]
    never_stops = copy.copy(base.codec)
    object.__setattr__(never_stops, "stop_ids", frozenset({-1}))
    endless = copy.copy(base)
    object.__setattr__(endless, "codec", never_stops)

    def ours() -> None:
        with adapter.mixtures(experts) as choose:
            sample(endless, prompts, Sampling(TOKENS, 0.0, ROWS), range(len(prompts)), kinds=kinds, choose=choose)

    def theirs() -> None:
        how = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
        tuned.generate(input_ids=ids, attention_mask=mask, adapter_names=names, **how)

    return ours, theirs


if __name__ == "__main__":
    for line in run():
        print(f"{line['name']:58} {line['ours']:8.1f} {line['theirs']:8.1f} {line['unit']}   {line['ratio']:.2f} x")
