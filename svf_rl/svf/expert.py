"""Expert files and expert algebra.

An expert file is safetensors: one float32 vector "z.<matrix name>" each, and these strings as metadata (`about`):

format            "svf-expert-1"
base              the name the base was loaded by          fingerprint   the hash of its weights
targets, rank     which matrices, how many values each     parametrisation   how z was trained; the file holds effective z
environment       what it was trained on                   command, revision, metrics   how, with which code, to what effect

Mixing, on effective z:   z = 1 + sum_k a_k (z_k - 1).   With weights that sum to 1 this is sum_k a_k z_k, the published rule;
with all weights 0 it is the base, and a one-hot mixture is that expert.

Source: Transformer-Squared, section 3.2 (adaptation by linear interpolation).
Differs from the source (SakanaAI/self-adaptive-llms): it mixes raw logits, so that one expert with weight 1 does not
reproduce itself.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svf_rl.errors import ExpertError
from svf_rl.files import read_tensors, write_tensors
from svf_rl.types import Expert

FORMAT = "svf-expert-1"
REQUIRED = (
    "format",
    "base",
    "fingerprint",
    "targets",
    "rank",
    "parametrisation",
    "environment",
    "command",
    "revision",
    "metrics",
)
Weights = Sequence[float] | Mapping[str, Sequence[float]]


def save_expert(path: Path, expert: Expert) -> None:
    """Write atomically. ValueError if a metadata field is missing: an expert without a history is not kept."""
    missing = [field for field in REQUIRED if field not in {"format": FORMAT, **expert.about}]
    if missing:
        raise ValueError(f"an expert file needs {', '.join(missing)}")
    about = {key: value if isinstance(value, str) else json.dumps(value) for key, value in expert.about.items()}
    write_tensors(path, {f"z.{name}": z.float() for name, z in expert.z.items()}, {**about, "format": FORMAT})


def load_expert(path: Path) -> Expert:
    """Read an expert file. ExpertError for a missing, damaged or foreign file, or for values that no training can produce."""
    try:
        tensors, about = read_tensors(path)
    except OSError as error:
        found = error.strerror or error
        raise ExpertError(f"cannot read the expert {str(path)!r}: expected an expert file, found {found}") from error
    if about.get("format") != FORMAT:
        raise ExpertError(f"{str(path)!r} is no expert: expected format {FORMAT!r}, found {about.get('format')!r}")
    absent = [field for field in REQUIRED if field not in about]
    if absent:
        raise ExpertError(f"{str(path)!r} lacks the metadata {', '.join(absent)}; it was cut short or not written by svf-rl")
    foreign = [name for name in tensors if not name.startswith("z.")]
    if foreign:
        raise ExpertError(f"{str(path)!r} holds the tensor {foreign[0]!r}, expected z.<matrix name>; it is no expert of svf-rl")
    z = {name.removeprefix("z."): tensor for name, tensor in tensors.items()}
    _refuse_bad_values(path, z)
    return Expert(z, _parsed(about))


def check_fits(expert: Expert, fingerprint: str, spectra: Mapping[str, Tensor]) -> None:
    """ExpertError unless the expert was trained on the base with this fingerprint and has a z of the right length per matrix."""
    found = expert.about.get("fingerprint")
    if found != fingerprint:
        raise ExpertError(
            f"this expert was trained on the base {expert.about.get('base')!r} (fingerprint {found}), "
            f"the loaded base has fingerprint {fingerprint}; load that base"
        )
    missing, extra = sorted(set(spectra) - set(expert.z)), sorted(set(expert.z) - set(spectra))
    if missing or extra:
        raise ExpertError(
            f"the expert's matrices do not match the adapter's targets: missing {missing[:3]}, extra {extra[:3]}; "
            f"use adapter.targets={expert.about.get('targets')!r}"
        )
    for name, s in spectra.items():
        if expert.z[name].shape != s.shape:
            raise ExpertError(
                f"z of {name} has shape {tuple(expert.z[name].shape)}, expected {tuple(s.shape)}; "
                f"use adapter.rank={expert.about.get('rank')}"
            )


def mix(experts: Sequence[Expert], weights: Weights) -> Expert:
    """1 + sum_k a_k (z_k - 1). weights: one a_k per expert, or a list of them for every matrix.

    ValueError for no experts, experts of different matrices or bases, weights for other matrices, another number of weights
    than experts, or weights that are not finite.
    """
    if not experts:
        raise ValueError("mix needs at least one expert")
    per_matrix = weights if isinstance(weights, Mapping) else dict.fromkeys(experts[0].z, weights)
    shapes = [{name: z.shape for name, z in e.z.items()} for e in experts]
    known = {e.about["fingerprint"] for e in experts if "fingerprint" in e.about}
    if shapes.count(shapes[0]) < len(shapes) or len(known) > 1:
        raise ValueError("only experts of the same matrices of the same base can be mixed")
    if set(per_matrix) != set(shapes[0]):
        raise ValueError("weights by matrix must name exactly the matrices of the experts")
    return Expert({name: _mix_one([e.z[name] for e in experts], per_matrix[name]) for name in experts[0].z})


def _mix_one(zs: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    a = torch.as_tensor(weights, dtype=torch.float32)
    if a.shape != (len(zs),) or not bool(a.isfinite().all()):
        raise ValueError(f"expected {len(zs)} finite weights, found {list(weights)}")
    if bool((a == 1).sum() == 1) and bool((a != 0).sum() == 1):
        return zs[int(a.argmax())].clone()  # exact: 1 + (z - 1) would round
    return 1 + (a[:, None] * (torch.stack(list(zs)) - 1)).sum(0)


def interpolate(expert: Expert, amount: float) -> Expert:
    """The base at 0, the expert at 1, and beyond: 1 + amount (z - 1)."""
    return mix([expert], [amount])


def negate(expert: Expert) -> Expert:
    """The opposite move: 2 - z."""
    return interpolate(expert, -1.0)


def sparsify(expert: Expert, keep: float) -> Expert:
    """Keep the share `keep` of all values that moved furthest from 1, over all matrices together; the rest become 1."""
    if not 0 <= keep <= 1:
        raise ValueError(f"keep must be between 0 and 1, not {keep}")
    values = torch.cat(list(expert.z.values()))
    kept = (values - 1).abs().topk(round(keep * len(values))).indices  # of values that moved equally far, some
    sparse = torch.ones_like(values).index_copy(0, kept, values[kept])
    pieces = sparse.split([len(z) for z in expert.z.values()])
    return Expert({name: piece.clone() for name, piece in zip(expert.z, pieces, strict=True)})


def _parsed(about: Mapping[str, str]) -> dict[str, Any]:
    parsed: dict[str, Any] = dict(about)
    for key in ("rank", "metrics"):
        try:
            parsed[key] = json.loads(about[key])
        except json.JSONDecodeError as error:
            raise ExpertError(f"the expert's metadata field {key!r} is damaged: {error}") from error
    return parsed


def _refuse_bad_values(path: Path, vectors: Mapping[str, Tensor]) -> None:
    if not vectors:
        raise ExpertError(f"{str(path)!r} holds no z at all")
    for name, z in vectors.items():
        if z.dtype != torch.float32 or z.ndim != 1:
            raise ExpertError(f"{str(path)!r}: z of {name} must be a float32 vector, found {z.dtype} {tuple(z.shape)}")
        if not bool(z.isfinite().all()):
            raise ExpertError(f"{str(path)!r}: z of {name} has values that are not finite; the file is damaged, train it again")
