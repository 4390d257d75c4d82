"""A steering vector for each layer: h_l + b_l, where h_l is what layer l writes to the residual stream.

The vector is added to the output of the layer's last feed-forward matrix, which is the last thing a layer adds to the residual
stream; b = 0 at first, so that the model begins as the base.

Source: arXiv 2308.10248 (activation addition), 2106.10199 (training biases alone).
Differs from the source:
1. The vectors are trained by reinforcement, not read off contrasting prompts.
2. Where a norm follows the feed-forward block (Gemma 2), the vector passes through it.
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from svf_rl.alternatives.swapped import SwappedAdapter, module_slot
from svf_rl.base.load import Base
from svf_rl.errors import BaseError
from svf_rl.progress import Progress
from svf_rl.svf.factorize import find_targets, matrix


@dataclass(frozen=True)
class BiasConfig:
    """One vector per layer: there is nothing to choose."""

    name: str = "bias"


class ShiftedLinear(nn.Module):
    """A linear layer of the base, which it holds and never changes, with a trained vector added to its output."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.shift = nn.Parameter(torch.zeros(matrix(base).shape[0], device=matrix(base).device))

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        y = cast(Tensor, self.base(x))
        return (y + self.shift).to(y.dtype)


def make_bias(base: Base, config: BiasConfig, progress: Progress) -> SwappedAdapter:
    """The adapter, not yet installed. BaseError for a base without one last feed-forward matrix in each layer."""
    text = base.model.config.get_text_config()
    ends = {name: m for name, m in find_targets(base.model, "mlp").items() if matrix(m).shape[0] == text.hidden_size}
    if len(ends) != text.num_hidden_layers:
        raise BaseError(
            f"adapter=bias expects one matrix in each of {text.num_hidden_layers} layers that ends its feed-forward block, "
            f"found {len(ends)}; use another adapter"
        )
    shifted = {name: ShiftedLinear(module) for name, module in ends.items()}
    slots = [module_slot(base.model, name, ends[name], layer) for name, layer in shifted.items()]
    return SwappedAdapter(config.name, slots, {name: layer.shift for name, layer in shifted.items()})
