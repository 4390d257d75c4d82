"""The geometric prior of shiftable attention, from corpora to prompts: fitted, kept beside the adapter's file, read again.

The base's domain is general text, a specialist's its corpus; a text is the mean of the base's final hidden states, without the
first token, which says little. Prompts are of any length, and means over few tokens scatter more: so the geometry is fitted to the
beginnings of rows, from 4 tokens up, and each length has its own scale of the covariance and its own threshold.

The file, <name of the adapter's file>.prior.safetensors, has these tensors, and as metadata the strings of an adapter file
(svf_rl/adapters.py) with format "svf-prior-1".
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from svf_rl.adapters import REQUIRED
from svf_rl.attention.geometry import Geometry, calibrate, fit, pooled, prefixes
from svf_rl.base.load import Base
from svf_rl.errors import ExpertError
from svf_rl.files import read_tensors, write_tensors
from svf_rl.learn.language import Texts

FORMAT = "svf-prior-1"
LENGTHS = tuple(2**n for n in range(2, 16))
MOST = 128  # rows of a corpus that are read


@dataclass(frozen=True)
class Prior:
    """centres, precision: of a Geometry.  scales, thresholds: of the covariance and of the distance, for each of LENGTHS."""

    centres: Float[Tensor, "K width"]
    precision: Float[Tensor, "width width"]
    scales: Float[Tensor, " lengths"]
    thresholds: Float[Tensor, " lengths"]

    def at(self, tokens: int) -> Geometry:
        """The geometry of texts of so many tokens, of the nearest length below it."""
        i = max(0, sum(n <= tokens for n in LENGTHS[: len(self.scales)]) - 1)
        return Geometry(self.centres, self.precision / self.scales[i], float(self.thresholds[i]))


def fit_prior(base: Base, texts: Texts) -> Prior:
    """Of the general text and of every corpus; scales and thresholds are those of their held-out parts. No adapter is active."""
    sides = (texts.general, *texts.special.values())
    geometry = fit([beginnings(base, corpus["train"]).flatten(0, 1) for corpus in sides])
    held_out = torch.cat([beginnings(base, corpus["valid"]) for corpus in sides]).unbind(1)
    scales = torch.stack([geometry.distances(rows).min(-1).values.mean() for rows in held_out]) / geometry.centres.shape[1]
    scaled = [Geometry(geometry.centres, geometry.precision / scale) for scale in scales]
    thresholds = [calibrate(*pair).threshold for pair in zip(scaled, held_out, strict=True)]
    return Prior(geometry.centres, geometry.precision, scales, torch.tensor(thresholds, dtype=torch.float64))


def shares(base: Base, prior: Prior, texts: Texts) -> dict[str, float]:
    """Of how much of the test part of each corpus the prior prefers the right branch, over all lengths."""
    found = {}
    for branch, (name, corpus) in enumerate({"general": texts.general, **texts.special}.items()):
        rows = beginnings(base, corpus["test"]).unbind(1)
        chosen = torch.cat([prior.at(n).branch_prior(some).argmax(-1) for n, some in zip(LENGTHS, rows, strict=False)])
        found[name] = float((chosen == branch).double().mean())
    return found


@torch.no_grad()
def beginnings(base: Base, ids: Tensor, rows: int = 16) -> Float[Tensor, "many lengths width"]:
    """Pooled states of the beginnings of at most MOST of the rows, spread over the corpus."""
    some = ids[:: -(-len(ids) // MOST), :-1].split(rows)
    states = (base.hidden(part.to(base.device), use_cache=False)[:, 1:].double().cpu() for part in some)
    return torch.cat([prefixes(hidden, LENGTHS) for hidden in states])


@torch.no_grad()
def prompt_prior(base: Base, prior: Prior, ids: Sequence[int]) -> Float[Tensor, "1 n"]:
    """The log prior of one prompt, on the base's device. No adapter is active."""
    hidden = base.hidden(torch.tensor([ids], device=base.device), use_cache=False)[:, 1 if len(ids) > 1 else 0 :].double().cpu()
    query = pooled(hidden, torch.ones(hidden.shape[:2], dtype=torch.bool)).double()
    return prior.at(hidden.shape[1]).branch_prior(query).float().to(base.device)


def prior_file(adapter_file: Path) -> Path:
    """Where the prior of an adapter's file is kept."""
    return adapter_file.with_suffix(".prior.safetensors")


def save_prior(path: Path, prior: Prior, about: Mapping[str, Any]) -> None:
    """Write it atomically. about: as of an adapter file."""
    fields = {**about, "format": FORMAT, "adapter": "shiftable", "settings": {}}
    write_tensors(
        path,
        vars(prior),
        {key: fields[key] if isinstance(fields[key], str) else json.dumps(fields[key]) for key in ("format", *REQUIRED)},
    )


def open_prior(path: Path, base: Base, branches: int) -> Prior | None:
    """The prior in a file, for a gate of so many branches; None without a file. ExpertError if it is damaged or of another base."""
    if not path.exists():
        return None
    try:
        tensors, about = read_tensors(path)
    except OSError as error:
        raise ExpertError(f"cannot read the prior {str(path)!r}: {error}; delete it to do without") from error
    fits = about.get("format") == FORMAT and about.get("fingerprint") == base.fingerprint
    if not fits or len(tensors["centres"]) != branches:
        raise ExpertError(f"the prior {str(path)!r} belongs to another base or adapter; delete it to do without")
    return Prior(**tensors)
