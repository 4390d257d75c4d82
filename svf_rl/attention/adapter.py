"""The adapter of every attention module: a patch at each layer's attention (see host.py), and the contract of svf_rl/adapter.py."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from svf_rl.attention.host import Host, Patch, Site, find_attention


class AttentionAdapter:
    """Implements `svf_rl.adapter.Adapter`. config: the settings it was made with; patches: by the path of their attention module.

    make: the patch for one site; all of them are the identity.
    """

    def __init__(self, model: Any, config: Any, make: Callable[[Site], Patch]) -> None:
        self.model, self.config, self.name = model, config, str(config.name)
        sites = find_attention(model)
        self.patches = {path: make(site).to(site.out.device) for path, site in sites.items()}
        self.hosts = {path: Host(model.get_submodule(path), patch) for path, patch in self.patches.items()}

    def install(self) -> None:
        for path, host in self.hosts.items():
            host.attach()
            _replace(self.model, path, host)

    def uninstall(self) -> None:
        for path, host in self.hosts.items():
            host.detach()
            _replace(self.model, path, host.base)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        with _held(self.hosts, "bypass", True):
            yield

    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"{path}.{name}": p for path, patch in self.patches.items() for name, p in patch.named_parameters()}

    def state(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters().items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take all of it or, with ValueError, nothing: other names, or shapes that `copy_` would broadcast."""
        own = self.parameters()
        if {name: t.shape for name, t in state.items()} != {name: p.shape for name, p in own.items()}:
            raise ValueError(f"the names or shapes of this state are not those of {self.name} with these settings")
        for name, parameter in own.items():
            parameter.copy_(state[name])

    def constrain(self) -> None:
        for patch in self.patches.values():
            patch.constrain()

    def penalty(self) -> Tensor | None:
        found = [patch.penalty for patch in self.patches.values() if patch.penalty is not None]
        return torch.stack(found).mean() if found else None

    def figures(self) -> dict[str, float]:
        patches = list(self.patches.values())
        return {name: float(torch.stack([p.figures[name] for p in patches]).mean()) for name in patches[0].figures}

    def look(
        self, ids: Int[Tensor, "rows time"], *, return_gates: bool = False, return_masks: bool = False, **kwargs: Any
    ) -> tuple[Float[Tensor, "rows time vocabulary"] | list[Tensor], ...]:
        """Logits and, as asked, for each layer in order:

        gates  [rows, time, n]: what each token multiplies branches or heads by; n and their meaning are the module's.
        masks  [rows, heads, time, keys]: what each pair's attention weight is multiplied by, before any renormalisation; of pairs
               whose query does not see the key, and whose weight is 0, any finite number.

        ValueError if the module has none.
        """
        with _held(self.hosts, "looking", True):
            logits = self.model(input_ids=ids, **kwargs).logits
            calls = [host.take() for host in self.hosts.values()]
        asked = [word for word, wanted in {"gates": return_gates, "masks": return_masks}.items() if wanted]
        found = [[getattr(call, word) for call in calls] for word in asked]
        for word, values in zip(asked, found, strict=True):
            if any(value is None for value in values):
                raise ValueError(f"{self.name} with these settings has no {word}")
        return (logits, *found)


def setting(adapter: AttentionAdapter, name: str, value: object) -> AbstractContextManager[None]:
    """Within it, an attribute of every patch has this value."""
    return _held(adapter.patches, name, value)


@contextmanager
def _held(modules: Mapping[str, nn.Module], name: str, value: object) -> Iterator[None]:
    before = {path: getattr(module, name) for path, module in modules.items()}
    try:
        for module in modules.values():
            setattr(module, name, value)
        yield
    finally:
        for path, module in modules.items():
            setattr(module, name, before[path])


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
