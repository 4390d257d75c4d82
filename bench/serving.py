"""Serving many experts: a merged expert's forward beside the base's, switching experts, and different experts in one batch.

The other side of switching and of the mixed batch is `peft` with LoRA of rank 16 on the same matrices: `set_adapter` and a
merge, and `generate` with `adapter_names`. Greedy, a fixed number of tokens for everyone, so that both sides write equally
much.
"""

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from bench._measure import Row, Side, peer, row, side_by_side
from svf_rl.base.load import Base, BaseConfig, load_base
from svf_rl.progress import Progress
from svf_rl.rollout.episodes import EnvConfig, make_env, prompts_of
from svf_rl.rollout.sampler import Sampling, sample
from svf_rl.svf.adapter import SVFAdapter, SVFConfig, make_svf
from svf_rl.types import Expert

EXPERTS, ROWS, TOKENS = 8, 64, 32
FORWARDS, SWITCHES, BATCHES = 101, 9, 5  # rounds


@torch.no_grad()
def run() -> Iterator[Row]:
    base, other = load_base(BaseConfig()), load_base(BaseConfig())
    adapter = make_svf(base, SVFConfig(), Progress(quiet=True))
    experts = [random_expert(adapter, seed) for seed in range(EXPERTS)]
    prompts = [base.codec.prompt(p) for p in prompts_of(make_env(EnvConfig()), "test", range(ROWS))]
    ids = torch.tensor([p[:16] for p in prompts if len(p) >= 16], device=base.device)
    plain = copy.deepcopy(other.model)
    adapter.install()
    adapter.load_expert(experts[0])
    times = side_by_side(lambda: base.model(ids), lambda: plain(ids), FORWARDS, "forward")
    yield in_ms("merged expert's forward, beside the base's", times, "≤ 1.02")
    peer("peft")
    tuned = lora_model(other)
    times = side_by_side(*switching(adapter, experts, tuned), SWITCHES, "switching")
    yield in_ms(f"switching {EXPERTS} experts, merged, beside peft", times, "≥ 3")
    times = side_by_side(*batches(base, adapter, experts, tuned, prompts), BATCHES, "mixed batch")
    yield in_ms(f"{EXPERTS} experts in a batch of {ROWS}, beside peft", times, "≥ 3")


def in_ms(name: str, times: list[float], target: str) -> Row:
    return row(name, 1000 * times[0], 1000 * times[1], "ms", target)


def random_expert(adapter: SVFAdapter, seed: int) -> Expert:
    stream = torch.Generator().manual_seed(seed)
    return Expert({name: 1 + 0.05 * torch.randn(s.shape, generator=stream) for name, s in adapter.spectra.items()})


def lora_model(base: Base) -> Any:
    """peft's model with as many adapters, all matrices, rank 16, B not zero."""
    peft = peer("peft")
    config = peft.LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(base.model, config, adapter_name="0")
    for i in range(1, EXPERTS):
        model.add_adapter(str(i), config)
    return model.eval()


def switching(adapter: SVFAdapter, experts: list[Expert], tuned: Any) -> tuple[Side, Side]:
    """A round of all experts, each merged, so that its forward costs nothing; peft has to take the last one out first."""

    def ours() -> None:
        for expert in experts:
            adapter.load_expert(expert)
            for layer in adapter.layers.values():
                layer.dense()

    def theirs() -> None:
        for i in range(EXPERTS):
            tuned.set_adapter(str(i))
            tuned.merge_adapter()
            tuned.unmerge_adapter()

    return ours, theirs


def batches(base: Base, adapter: SVFAdapter, experts: list[Expert], tuned: Any, prompts: list[list[int]]) -> tuple[Side, Side]:
    """A mixed batch, of which every row writes all its tokens."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=base.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=base.device)
    names = [str(i % EXPERTS) for i in range(len(prompts))]
    kinds = [i % EXPERTS for i in range(len(prompts))]
    endless = dataclasses.replace(base, codec=dataclasses.replace(base.codec, stop_ids=frozenset({-1})))

    def ours() -> None:
        with adapter.mixtures(experts) as choose:
            sample(endless, prompts, Sampling(TOKENS, 0.0, ROWS), range(len(prompts)), kinds=kinds, choose=choose)

    def theirs() -> None:
        how = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
        tuned.generate(input_ids=ids, attention_mask=mask, adapter_names=names, **how)

    return ours, theirs
