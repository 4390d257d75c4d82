"""An adapter that takes the place of parts of a base: modules or weights, swapped in and out by name.

A torch module keeps its children in one dictionary and its weights in another. A `Slot` is one entry of either: what the base has
there and what the adapter has. Installing writes the second, uninstalling and `disabled` write the first, so the base is never
computed back from anything: it is the very objects that it was.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from svf_rl.svf.factorize import matrix


class Slot(NamedTuple):
    """One entry of a module's dictionary of children or of weights. adapted: makes what the adapter puts there."""

    holder: dict[str, Any]
    key: str
    base: Any
    adapted: Callable[[], Any]


class SwappedAdapter:
    """Implements `svf_rl.adapter.Adapter`. trained: float32 parameters by name; start: their values where the model is the base."""

    def __init__(
        self, name: str, slots: Sequence[Slot], trained: Mapping[str, nn.Parameter], start: Mapping[str, Tensor] | None = None
    ) -> None:
        self.name, self.slots, self.trained = name, list(slots), dict(trained)
        self.start = dict(start) if start is not None else self.state()
        self.installed = False

    def install(self) -> None:
        for slot in self.slots:
            slot.holder[slot.key] = slot.adapted()
        self.installed = True

    def uninstall(self) -> None:
        for slot in self.slots:
            slot.holder[slot.key] = slot.base
        self.installed = False

    @contextmanager
    def disabled(self) -> Iterator[None]:
        before = self.installed
        self.uninstall()
        try:
            yield
        finally:
            if before:
                self.install()

    def parameters(self) -> dict[str, nn.Parameter]:
        return self.trained

    def state(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take all of it or, with ValueError, nothing: other names, or shapes that `copy_` would broadcast."""
        if {name: t.shape for name, t in state.items()} != {name: p.shape for name, p in self.trained.items()}:
            raise ValueError("the names or shapes of this state are not those that the adapter trains")
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state[name])
        self.constrain()

    def constrain(self) -> None:
        """No trust region; but what was made from the parameters is made anew."""
        if self.installed:
            self.install()

    def penalty(self) -> None:
        """None: KL alone holds it."""
        return

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        total = sum(p.numel() for p in self.trained.values())
        squares = sum(float((p - self.start[name]).square().sum()) for name, p in self.trained.items())
        return {"adapter_move": (squares / total) ** 0.5}


def module_slot(model: nn.Module, path: str, base: nn.Module, adapted: nn.Module) -> Slot:
    """The slot at `path`, where the base has the linear layer `base`, which `adapted`, linear too, will stand in for."""
    parent, _, child = path.rpartition(".")
    vars(adapted)["dense"] = partial(dense, adapted, matrix(base))  # what the sampler's own forward asks for
    return Slot(model.get_submodule(parent)._modules, child, base, lambda: adapted)


@torch.no_grad()
def dense(module: nn.Module, like: Float[Tensor, "out in"]) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"]]:
    """Weight and bias of anything linear, as it acts now: what it makes of the unit vectors, and of zero."""
    units = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
    bias: Tensor = module(torch.zeros_like(units[0]))
    return (module(units) - bias).T, bias
