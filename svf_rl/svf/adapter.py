"""The SVF adapter: one z per targeted matrix, installed into a base.

Parametrisations, by name:
direct   z itself is trained, starting at exactly 1: untrained, the model is the base bit for bit.
paper    a logit t is trained; m = sigmoid(t), z = m * sum(s) / sum(s m): the mask with the rescaling of the nuclear norm that the
         released code does and the paper does not mention. For comparison; the start is 1 up to rounding.

Trust region: |log z| <= log_bound bounds how far any singular value can move, e.g. 0.7 keeps each between half and double.

Source: Transformer-Squared, sections 3.1 and 3.2; SakanaAI/self-adaptive-llms policy and base_model folders.
Differs from the source: parameters and optimiser state are float32 (bfloat16 there: updates below 0.4 % are lost).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from svf_rl.base.load import Base
from svf_rl.progress import Progress
from svf_rl.svf.factorize import factorize
from svf_rl.svf.linear import SVFLinear, stack_alike
from svf_rl.types import Expert, Factors

_START = {"direct": 1.0, "paper": 2.0}


class Parametrisation(StrEnum):
    """What is trained: z itself, or the published mask."""

    direct = "direct"
    paper = "paper"


@dataclass(frozen=True)
class SVFConfig:
    """Which matrices, how many values of each, what is trained, and how far it may go."""

    name: str = "svf"
    targets: str = "attention+mlp"
    rank: int | None = None
    parametrisation: Parametrisation = Parametrisation.direct
    log_bound: float | None = 0.7


class SVFAdapter:
    """Implements `svf_rl.adapter.Adapter`. model: the base's model; factors: by matrix name (see factorize)."""

    name = "svf"

    def __init__(
        self,
        model: nn.Module,
        factors: Mapping[str, Factors],
        parametrisation: str = Parametrisation.direct,
        log_bound: float | None = None,
    ) -> None:
        self.model, self.parametrisation, self.log_bound = model, parametrisation, log_bound
        start = _START[parametrisation]
        self.raw = {name: nn.Parameter(torch.full_like(f.s, start)) for name, f in factors.items()}
        self.spectra = {name: f.s for name, f in factors.items()}
        self.layers = {name: self._layer(name, f) for name, f in factors.items()}
        stack_alike(self.layers.values())

    def _layer(self, name: str, factors: Factors) -> SVFLinear:
        base = self.model.get_submodule(name)
        return SVFLinear(base, factors, lambda: self.scale(name), lambda: self.raw[name]._version)

    def scale(self, name: str) -> Tensor:
        """The effective z of one matrix, differentiable."""
        raw = self.raw[name]
        if self.parametrisation == "direct":
            return raw
        mask, s = torch.sigmoid(raw), self.spectra[name]
        return mask * (s.sum() / (s * mask).sum())

    def install(self) -> None:
        for name, layer in self.layers.items():
            _replace(self.model, name, layer)

    def uninstall(self) -> None:
        for name, layer in self.layers.items():
            _replace(self.model, name, layer.base)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        with self._set("bypass", dict.fromkeys(self.layers, True)):
            yield

    @contextmanager
    def per_row(self, experts: Sequence[Expert | None]) -> Iterator[None]:
        """Within it, row b of every batch runs under experts[b]; None is the base, exactly."""
        with self.mixtures(experts) as choose:
            choose(torch.arange(len(experts)))
            yield

    @contextmanager
    def mixtures(self, experts: Sequence[Expert | None]) -> Iterator[Callable[[Int[Tensor, " rows"]], None]]:
        """Within it, the yielded function says which expert each row of the next batches runs under; None is the base, exactly.

        It costs one gather of [rows, trained numbers], however many experts there are.
        """
        table, residual = self._table(experts)
        layers, sizes = list(self.layers.values()), [len(s) for s in self.spectra.values()]

        def choose(kinds: Int[Tensor, " rows"]) -> None:
            for layer, rows in zip(layers, table[kinds.to(table.device)].split(sizes, -1), strict=True):
                layer.rows = rows

        with self._set("rows", dict.fromkeys(self.layers)), self._set("residual", residual):
            yield choose

    def _table(self, experts: Sequence[Expert | None]) -> tuple[Float[Tensor, "k trained"], dict[str, bool]]:
        """For each expert what scales Vt x, all matrices side by side; and which matrices take it in the residual form."""
        tables, residual = {}, {}
        for name, layer in self.layers.items():
            z = torch.stack([torch.ones_like(layer.s) if e is None else e.z[name].to(layer.s) for e in experts])
            tables[name], residual[name] = layer.table(z)
        return torch.cat(list(tables.values()), -1), residual

    @contextmanager
    def _set(self, attribute: str, values: Mapping[str, object]) -> Iterator[None]:
        """Within it, every layer's attribute has the given value; afterwards the one it had before."""
        before = {name: getattr(layer, attribute) for name, layer in self.layers.items()}
        try:
            for name, layer in self.layers.items():
                setattr(layer, attribute, values[name])
            yield
        finally:
            for name, layer in self.layers.items():
                setattr(layer, attribute, before[name])

    def parameters(self) -> dict[str, nn.Parameter]:
        return self.raw

    def state(self) -> dict[str, Tensor]:
        return {name: raw.detach().clone() for name, raw in self.raw.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take all of it or, with ValueError, nothing: other names, or shapes that `copy_` would broadcast."""
        if {name: t.shape for name, t in state.items()} != {name: raw.shape for name, raw in self.raw.items()}:
            raise ValueError("the names or shapes of this state are not those of the adapter's matrices")
        for name, raw in self.raw.items():
            raw.copy_(state[name])

    def load_expert(self, expert: Expert) -> None:
        """Take an expert's z; the parametrisation must be direct, since a mask has no inverse in general."""
        if self.parametrisation != "direct":
            raise ValueError(f"an expert cannot be loaded into the parametrisation {self.parametrisation!r}; use direct")
        self.load_state(expert.z)

    def expert(self) -> Expert:
        """The current z as an expert without history."""
        return Expert({name: self.scale(name).detach().clone().cpu() for name in self.raw})

    @torch.no_grad()
    def constrain(self) -> None:
        if self.log_bound is None or self.parametrisation != "direct":
            return
        low, high = (torch.tensor([-self.log_bound, self.log_bound]).exp()).tolist()
        for raw in self.raw.values():
            raw.clamp_(low, high)

    def penalty(self) -> None:
        """None: KL and the trust region hold z."""
        return

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        z = torch.cat([self.scale(name).flatten() for name in self.raw])
        return {
            "z_mean": float(z.mean()),
            "z_move": float((z - 1).square().mean().sqrt()),
            "z_max_log": float(z.clamp(min=1e-6).log().abs().max()),
        }


def make_svf(base: Base, config: SVFConfig, progress: Progress) -> SVFAdapter:
    """The adapter that `config` describes, not yet installed; factorises the base if no cache has its factors."""
    factors = factorize(base, config.targets, config.rank, progress)
    return SVFAdapter(base.model, factors, config.parametrisation, config.log_bound)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
