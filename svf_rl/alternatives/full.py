"""Full fine-tuning: every weight of a copy of the base is trained, embeddings and norms included.

The copy is float32. It takes the base's place in the base's own modules, converted to the base's type where that is another one;
weights that the base ties stay tied. Uninstalled or disabled, the modules hold the base's own tensors again.

Source: huggingface/trl trl/trainer/grpo_trainer.py with a separate reference model.
Differs from the source: base and copy share one set of modules, so the reference costs weights but no second model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from svf_rl.alternatives.swapped import Slot, SwappedAdapter
from svf_rl.base.load import Base
from svf_rl.errors import BaseError
from svf_rl.progress import Progress


@dataclass(frozen=True)
class FullConfig:
    """Every weight: there is nothing to choose."""

    name: str = "full"


def make_full(base: Base, config: FullConfig, progress: Progress) -> SwappedAdapter:
    """The adapter, not yet installed. BaseError for a base with weights that no gradient can reach."""
    weights = dict(base.model.named_parameters())
    unsuited = [name for name, weight in weights.items() if not weight.is_floating_point() or weight.is_meta]
    if unsuited:
        raise BaseError(f"{unsuited[0]} cannot be trained (quantised, or without values); load the base in float32 or bfloat16")
    trained = {name: nn.Parameter(weight.detach().to(torch.float32, copy=True)) for name, weight in weights.items()}
    copies = {id(weight): trained[name] for name, weight in weights.items()}
    slots = [
        Slot(module._parameters, key, weight, _in_type(copies[id(weight)], weight.dtype))
        for module in base.model.modules()
        for key, weight in module._parameters.items()
        if weight is not None
    ]
    return SwappedAdapter(config.name, slots, trained, start=weights)


def _in_type(parameter: nn.Parameter, dtype: torch.dtype) -> Callable[[], Tensor]:
    """The parameter as the base holds it: itself, or converted by an operation that gradients pass through."""
    return lambda: parameter if parameter.dtype == dtype else _converted(parameter, dtype)


@torch.enable_grad()
def _converted(parameter: nn.Parameter, dtype: torch.dtype) -> Tensor:
    return parameter.to(dtype)
