"""The one contract of everything that adapts a base without changing it.

An adapter is made for a base and starts as the identity: attached and untrained, the model answers as the base does, bit for
bit where the algebra allows. `install` puts its modules in, `uninstall` takes them out and leaves every base tensor as it
was. Trainers see nothing but this.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Adapter(Protocol):
    """What a trainer, an evaluator and a checkpoint need of an adaptation."""

    name: str

    def install(self) -> None:
        """Put the adapter's modules into the base."""
        ...

    def uninstall(self) -> None:
        """Take them out again; the base is bit-identical to what it was."""
        ...

    def disabled(self) -> AbstractContextManager[None]:
        """Within it, the model is the base, exactly."""
        ...

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name, in float32."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Copies of the trained tensors by name."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the values that `state` returned."""
        ...

    def constrain(self) -> None:
        """Project the parameters back into the trust region; called after every optimiser step."""
        ...

    def penalty(self) -> Tensor | None:
        """The regulariser of the last forward pass with the adapter, a differentiable mean over its tokens; None if it has none."""
        ...

    def figures(self) -> dict[str, float]:
        """What to log of the adapter's present state; learn/tracking.py explains every name."""
        ...
