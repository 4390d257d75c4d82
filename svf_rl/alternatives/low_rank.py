"""LoRA, IA3 and TinyLoRA as the library `peft` has them, behind the project's contract.

LoRA      W + (alpha / rank) B A, A random, B = 0 at first.
IA3       l * (W x) for keys and values, W (l * x) for the matrix that leaves the feed-forward block; l = 1 at first.
TinyLoRA  W + B (sum_i v_i P_i) A, with B A the top singular part of W and P_i fixed random; only v is trained, v = 0 at first.

All three begin as the base, bit for bit: what they add is an exact zero, what they multiply by is an exact one.

Source: arXiv 2106.09685 (LoRA), 2205.05638 (IA3), 2602.04118 (TinyLoRA); huggingface/peft src/peft/tuners.
Differs from the source (peft):
1. Modules are swapped in and out by us, so the base stays the same object without a trace of peft on it.
2. What is trained is float32 whatever the base is; A of LoRA is drawn from a fixed seed and leaves the global stream alone.
3. The signs of TinyLoRA's singular vectors are fixed: another machine's decomposition may
   return the others, and a stored v would mean something else there.
4. IA3's matrices follow one rule for all architectures; peft's table by architecture scales queries instead of keys in some.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from svf_rl.alternatives.swapped import SwappedAdapter, module_slot
from svf_rl.base.load import Base
from svf_rl.errors import UserError, check_at_least
from svf_rl.progress import Progress
from svf_rl.svf.factorize import TARGETS, find_targets

_SEED = 0


@dataclass(frozen=True)
class LoRAConfig:
    """Which matrices, the rank of the update, and what it is multiplied by: alpha / rank."""

    name: str = "lora"
    targets: str = "attention+mlp"
    rank: int = 16
    alpha: float = 16.0

    def __post_init__(self) -> None:
        check_at_least(1, self, "rank", "adapter.")


@dataclass(frozen=True)
class IA3Config:
    """Which matrices: by default keys, values and the last of the feed-forward block. A mlp matrix is scaled at its input."""

    name: str = "ia3"
    targets: str = r"\.(k_proj|v_proj|qkv_proj|c_attn|query_key_value|down_proj|mlp\.c_proj|dense_4h_to_h)\."


@dataclass(frozen=True)
class TinyLoRAConfig:
    """Which matrices, the rank of the singular part, and how many numbers are trained for each matrix."""

    name: str = "tinylora"
    targets: str = "attention+mlp"
    rank: int = 2
    numbers: int = 64

    def __post_init__(self) -> None:
        check_at_least(1, self, "rank numbers", "adapter.")


def make_lora(base: Base, config: LoRAConfig, progress: Progress) -> SwappedAdapter:
    """The adapter that `config` describes, not yet installed. BaseError where this base has no such matrices."""
    targets, peft = find_targets(base.model, config.targets), _peft(config.name)
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, **_matrices(targets))
    return _wrap(base, config.name, targets, peft.LoraModel, settings)


def make_ia3(base: Base, config: IA3Config, progress: Progress) -> SwappedAdapter:
    """The adapter that `config` describes, not yet installed. BaseError where this base has no such matrices."""
    targets, peft = find_targets(base.model, config.targets), _peft(config.name)
    inner = [name for name in targets if re.search(TARGETS["mlp"], f".{name}.")]
    settings = peft.IA3Config(feedforward_modules=_any_of(inner), **_matrices(targets))
    return _wrap(base, config.name, targets, peft.IA3Model, settings)


def make_tinylora(base: Base, config: TinyLoRAConfig, progress: Progress) -> SwappedAdapter:
    """The adapter that `config` describes, not yet installed. BaseError where this base has no such matrices."""
    targets, peft = find_targets(base.model, config.targets), _peft(config.name)
    settings = peft.TinyLoraConfig(r=config.rank, u=config.numbers, projection_seed=_SEED, **_matrices(targets))
    adapter = _wrap(base, config.name, targets, peft.TinyLoraModel, settings)
    for slot in adapter.slots:
        _fix_signs(slot.adapted())
    numbers = dict(zip(targets, adapter.trained.values(), strict=True))  # peft names them by their place in this order
    return SwappedAdapter(config.name, adapter.slots, numbers)


def _peft(name: str) -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError(f"adapter={name} needs the library peft, which is not installed; pip install 'svf-rl[peft]'") from error
    return peft


def _matrices(targets: Mapping[str, nn.Module]) -> dict[str, Any]:
    """peft's settings for exactly these matrices. fan_in_fan_out: weights lie as [in, out], as in GPT-2."""
    return {"target_modules": _any_of(targets), "fan_in_fan_out": all(isinstance(m, Conv1D) for m in targets.values())}


def _any_of(names: Iterable[str]) -> str:
    """A regular expression for these whole paths; of a list peft would take the endings."""
    return "|".join(map(re.escape, names))


def _wrap(base: Base, name: str, targets: Mapping[str, nn.Module], tuner: Callable[..., nn.Module], config: Any) -> SwappedAdapter:
    """Let peft put its layers into the base, keep them, and leave the base as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        tuned = tuner(base.model, config, "default").train(base.model.training)
    trained = {n.removeprefix("model.").replace(".default", ""): p for n, p in tuned.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        parameter.data = parameter.data.to(base.device, torch.float32)
    slots = [module_slot(base.model, path, matrix, base.model.get_submodule(path)) for path, matrix in targets.items()]
    adapter = SwappedAdapter(name, slots, trained)
    adapter.uninstall()
    del base.model.peft_config
    return adapter


def _fix_signs(layer: Any) -> None:
    """Make the largest entry of every row of A positive, and hold A and B in float32 as v is."""
    a, b = layer.tinylora_A["default"].float(), layer.tinylora_B["default"].float()
    sign = a.gather(1, a.abs().argmax(1, keepdim=True)).sign()
    layer.tinylora_A["default"], layer.tinylora_B["default"] = a * sign, b * sign.T
