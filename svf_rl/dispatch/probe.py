"""A probe on the base's hidden states: does a prompt look like those that an expert was trained on?

    x     = the mean over the prompt's tokens of the base's final hidden states
    d_k   = sqrt((x - mu_k)ᵀ S_k⁻¹ (x - mu_k)),   S_k = (1 - a) C_k + a m I   (covariance, shrunk; m = tr C_k / width)
    r_k   = d_k / the distance that a share `quantile` of held-out prompts of the training split keeps

The nearest expert answers if its r is at most `tolerance`; beyond that, none does. Each expert's probe is fitted to prompts of its
own environment alone, so that another expert in the library changes none of these numbers. It takes seconds and is kept on disk.

Shrinkage a: Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices". Distance as a test for
what is unlike everything known: Lee et al. 2018 (arXiv 1807.03888).
Differs from the source: one covariance for each expert, not a shared one, kept as the singular vectors of the centred prompts.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from svf_rl.base.load import Base
from svf_rl.dispatch.dispatcher import BASE, Decision, using, weigh
from svf_rl.dispatch.library import Library, environment
from svf_rl.errors import UserError
from svf_rl.files import read_tensors, write_tensors
from svf_rl.progress import Progress
from svf_rl.rollout.episodes import EnvConfig, Split, make_env, prompts_of, split_size
from svf_rl.rollout.sampler import check_prompts
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.svf.factorize import cache_folder
from svf_rl.types import Expert

ROWS = 32


@dataclass(frozen=True)
class ProbeConfig:
    """How a probe is fitted and how far it reaches; configs/dispatch/probe.yaml."""

    name: str = "probe"
    prompts: int = 512
    quantile: float = 0.99
    tolerance: float = 5.0
    soft: bool = False

    def __post_init__(self) -> None:
        if self.prompts < 8 or not 0 < self.quantile <= 1 or not self.tolerance > 0:
            raise UserError(f"dispatch.prompts must be at least 8, quantile in (0, 1], tolerance above 0; found {self}")


@dataclass(frozen=True)
class Probe:
    """One expert's region: mean [width], axes [k, width] with the inverse variance along each, and off the axes; its reach."""

    mean: Float[Tensor, " width"]
    axes: Float[Tensor, "k width"]
    inverse: Float[Tensor, " k"]
    rest: Float[Tensor, ""]
    reach: Float[Tensor, ""]

    def distance(self, x: Float[Tensor, "n width"]) -> Float[Tensor, " n"]:
        """d / reach: 1 is as far away as own prompts come."""
        centred = x.double() - self.mean
        along = centred @ self.axes.T
        off = (centred.square().sum(-1) - along.square().sum(-1)).clamp(min=0)
        return ((along.square() @ self.inverse + off * self.rest).sqrt() / self.reach).float()


@dataclass(frozen=True)
class ProbeDispatcher:
    """One probe for each expert, in their order."""

    base: Base
    adapter: SVFAdapter
    probes: dict[str, Probe]
    config: ProbeConfig

    def decide(self, prompts: Sequence[str]) -> Decision:
        """Weights of the experts for each prompt."""
        begun = time.monotonic()
        ids = [self.base.codec.prompt(prompt) for prompt in prompts]
        with using(self.adapter, None):
            states = features(self.base, ids)
        distances = torch.stack([probe.distance(states) for probe in self.probes.values()], -1)
        known = distances.amin(-1) <= self.config.tolerance  # not so for NaN
        weights = weigh(-distances.square() / 2, self.config.soft).masked_fill(~known[:, None], 0.0)
        names = list(self.probes)
        return Decision(
            weights,
            [names[int(row.argmin())] if near else BASE for row, near in zip(distances, known.tolist(), strict=True)],
            [dict(zip(names, row, strict=True)) for row in distances.tolist()],
            time.monotonic() - begun,
            sum(map(len, ids)),
        )


def make_probe(base: Base, adapter: SVFAdapter, library: Library, config: ProbeConfig, progress: Progress) -> ProbeDispatcher:
    """Fit a probe for every expert, or take the one on disk. UserError if an environment cannot be made."""
    with using(adapter, None):
        probes = {name: expert_probe(base, expert, config, progress) for name, expert in library.items()}
    return ProbeDispatcher(base, adapter, probes, config)


def expert_probe(base: Base, expert: Expert, config: ProbeConfig, progress: Progress) -> Probe:
    """The probe of the environment that the expert was trained on."""
    env = environment(expert)
    path = _path(base, env, config)
    try:
        return Probe(**read_tensors(path)[0])
    except (OSError, TypeError):  # there is none, or it is damaged
        progress.say(f"fitting the probe for {env.name}: {config.prompts} prompts")
    probe = fit(features(base, _training_prompts(base, env, config.prompts)), config.quantile)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, vars(probe), {"environment": env.id, "fingerprint": base.fingerprint})
    except OSError as error:
        progress.say(f"the probe is not kept for the next time: cannot write {str(path)!r} ({error.strerror})")
    return probe


def fit(x: Float[Tensor, "n width"], quantile: float) -> Probe:
    """Three quarters of the prompts give mean and covariance, the rest the reach."""
    x, n = x.double(), len(x) * 3 // 4
    mean = x[:n].mean(0)
    _, s, axes = torch.linalg.svd(x[:n] - mean, full_matrices=False)
    variance, shrinkage = s.square() / n, ledoit_wolf(x[:n] - mean)
    level = (variance.sum() / x.shape[1]).clamp(min=1e-12)
    spread = (1 - shrinkage) * variance + shrinkage * level
    whole = Probe(mean, axes, 1 / spread, 1 / (shrinkage * level), torch.ones((), dtype=torch.double))
    return Probe(mean, axes, whole.inverse, whole.rest, whole.distance(x[n:]).double().quantile(quantile))


def ledoit_wolf(centred: Float[Tensor, "n width"]) -> Tensor:
    """The shrinkage towards a multiple of the identity that has the least expected squared error; at least 1e-3."""
    n, width = centred.shape
    variance = torch.linalg.svdvals(centred).square() / n
    square = variance.square().sum()  # of all entries of the covariance
    away = square - variance.sum().square() / width  # its squared distance from m I
    noise = (centred.square().sum(1).square().sum() / n - square) / n
    return torch.as_tensor(noise / away.clamp(min=1e-12)).clamp(1e-3, 1.0)


@torch.no_grad()
def features(base: Base, ids: Sequence[list[int]]) -> Float[Tensor, "n width"]:
    """The mean over each prompt's tokens of the base's final hidden states. UserError for one that does not fit the context."""
    check_prompts(base, ids)
    return torch.cat([_features(base, ids[i : i + ROWS]) for i in range(0, len(ids), ROWS)])


def _features(base: Base, ids: Sequence[list[int]]) -> Float[Tensor, "rows width"]:
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], batch_first=True).to(base.device)
    lengths = torch.tensor([len(row) for row in ids], device=base.device)
    own = torch.arange(padded.shape[1], device=base.device) < lengths[:, None]
    hidden = base.model.base_model(input_ids=padded, use_cache=False).last_hidden_state.float()
    means: Tensor = (hidden * own[..., None]).sum(1) / lengths[:, None]
    return means.cpu()


def _training_prompts(base: Base, config: EnvConfig, count: int) -> list[list[int]]:
    env = make_env(config)
    size = split_size(env, Split.train, count)
    if size < 8:
        raise UserError(f"a probe needs at least 8 prompts of the training split, {config.id!r} has {size}; use another dispatch")
    return [base.codec.prompt(prompt) for prompt in prompts_of(env, Split.train, range(size))]


def _path(base: Base, env: EnvConfig, config: ProbeConfig) -> Path:
    what = f"{base.fingerprint} {env.id} {sorted(env.settings.items())} {config.prompts} {config.quantile}"
    return cache_folder().parent / "probes" / f"{hashlib.blake2b(what.encode(), digest_size=12).hexdigest()}.safetensors"
