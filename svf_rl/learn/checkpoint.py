"""The whole state of a training run in one safetensors file, replaced atomically after every step.

Trained tensors, Adam's moments, the best tensors so far and the counters. There is no random state to save: every prompt and every
draw is a function of (seed, step), so a resumed run follows the trajectory of an uninterrupted one bit for bit.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from svf_rl.errors import UserError
from svf_rl.files import read_tensors, write_tensors


@dataclass
class Progress:
    """Counters of a run. step: steps done; best: highest validation accuracy so far, reached at best_step; bad_steps: in a row;
    base: the fingerprint of the base; older: specialists that the run began with and leaves as they are."""

    step: int = 0
    best: float = -1.0
    best_step: int = 0
    bad_steps: int = 0
    skipped_steps: int = 0
    faults: int = 0
    episodes: int = 0
    seconds: float = 0.0
    base_valid: float = -1.0
    base: str = ""
    history: list[list[float]] = field(default_factory=list)
    older: int = 0


def save_checkpoint(
    path: Path,
    trained: Mapping[str, nn.Parameter],
    best: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Write atomically; OSError if the disk refuses, with the previous checkpoint still there."""
    tensors = {f"best.{name}": tensor for name, tensor in best.items()}
    for name, parameter in trained.items():
        tensors[f"now.{name}"] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"adam.{key}.{name}"] = value
    write_tensors(path, tensors, {"progress": json.dumps(asdict(progress))})


def load_checkpoint(
    path: Path, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[Progress, dict[str, Tensor]]:
    """Put the stored values into the parameters and the optimiser; returns the counters and the best tensors.

    UserError for a damaged file or one of other matrices; parameters and optimiser are then as they were.
    """
    try:
        stored, about = read_tensors(path)
        progress = Progress(**json.loads(about["progress"]))
        _check_shapes(trained, stored)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the checkpoint {str(path)!r} cannot be resumed: {error}; start again in another run_dir") from error
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(stored[f"now.{name}"])
            _restore_moments(optimizer, name, parameter, stored)
    return progress, {name: stored[f"best.{name}"].to(parameter.device) for name, parameter in trained.items()}


def _check_shapes(trained: Mapping[str, nn.Parameter], stored: Mapping[str, Tensor]) -> None:
    for kind in ("now", "best"):
        found = {name.removeprefix(f"{kind}."): t.shape for name, t in stored.items() if name.startswith(f"{kind}.")}
        if found != {name: parameter.shape for name, parameter in trained.items()}:
            raise ValueError("it holds other matrices than this run trains")


def _restore_moments(optimizer: torch.optim.Optimizer, name: str, parameter: nn.Parameter, stored: Mapping[str, Tensor]) -> None:
    moments = {key: stored.get(f"adam.{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
    found = {key: value for key, value in moments.items() if value is not None}
    if found:
        optimizer.state[parameter] = {key: value if key == "step" else value.to(parameter.device) for key, value in found.items()}
