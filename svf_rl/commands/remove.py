"""`svf-rl remove`: shiftable attention without one of its specialists, as a new file; nothing is trained.

The others stay as they are, bit for bit, and share what the gate gave to the one that is left out in proportion. A geometric prior
beside the file (svf_rl/learn/prior.py) loses that branch's centre.
"""

import shlex
from dataclasses import replace
from pathlib import Path

import torch

from svf_rl.adapter import Adapter
from svf_rl.adapters import adapter_file, open_adapter, save_adapter
from svf_rl.attention.adapter import AttentionAdapter
from svf_rl.attention.shiftable import remove_specialist
from svf_rl.base.load import load_base
from svf_rl.commands.folders import out_folder, revision
from svf_rl.config import RemoveConfig
from svf_rl.errors import UserError
from svf_rl.learn.prior import open_prior, prior_file, save_prior


def run(configs: list[RemoveConfig], command: list[str]) -> None:
    for config in configs:
        remove(config, shlex.join(command))


def remove(config: RemoveConfig, command: str) -> None:
    """Read a file, write another. UserError for one that exists, and for a specialist that there is not."""
    path, out = adapter_file(config.adapter), new_file(config.out)
    base = load_base(config.base)
    adapter, about = open_adapter(path, base)
    several = checked(path, adapter, config.specialist)
    prior = open_prior(prior_file(path), base, 1 + several.config.specialists)
    fewer = remove_specialist(base, several, config.specialist - 1)
    about |= {"command": command, "revision": revision(), "metrics": {}}  # what was measured was another model
    save_adapter(out, fewer, fewer.config, about)
    if prior is not None:
        kept = [branch for branch in range(len(prior.centres)) if branch != config.specialist]
        save_prior(prior_file(out), replace(prior, centres=prior.centres[torch.tensor(kept)]), about)
    print(
        f"{several.config.specialists - 1} of {several.config.specialists} specialists, all but number {config.specialist}: {out}"
    )


def new_file(name: str) -> Path:
    """Where the adapter is to be written, in a folder that is made. UserError for a name that is taken, itself or its prior's."""
    out = Path(name).expanduser()
    if out.suffix != ".safetensors":
        raise UserError(f"expected out to end in .safetensors, found {name!r}")
    for taken in (out, prior_file(out)):
        if taken.exists():
            raise UserError(f"{str(taken)!r} exists, and nothing is overwritten; choose another out")
    out_folder(str(out.parent))
    return out


def checked(path: Path, adapter: Adapter, specialist: int) -> AttentionAdapter:
    """The adapter, if it has this specialist and another; else UserError."""
    if not (isinstance(adapter, AttentionAdapter) and adapter.name == "shiftable"):
        raise UserError(f"only adapter=shiftable has specialists, {str(path)!r} is of adapter={adapter.name}")
    many = adapter.config.specialists
    if many == 1:
        raise UserError(f"{str(path)!r} has one specialist, and without it would be the base")
    if not 1 <= specialist <= many:
        raise UserError(f"expected a specialist from 1 to {many}, found {specialist}")
    return adapter
