"""Folders that commands write to: which one a run takes, when it may, how it is gone on with, and by which code it was made."""

import errno
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from svf_rl.adapter import Adapter
from svf_rl.base.load import Base
from svf_rl.config import Objective, TrainConfig
from svf_rl.errors import UserError
from svf_rl.files import write_text
from svf_rl.learn import checkpoint
from svf_rl.settings import flat_settings, to_yaml


def run_folders(configs: list[TrainConfig]) -> list[Path]:
    """A folder for each configuration, all of them checked before the first is trained."""
    folders = [run_folder(config, several=len(configs) > 1) for config in configs]
    for config, folder in zip(configs, folders, strict=True):
        check_folder(folder, config)
    return folders


def run_folder(config: TrainConfig, several: bool) -> Path:
    """The folder that run_dir names (of several seeds: one in it for each), or a new one under runs/."""
    seed = f"seed{config.seed}"
    if config.run_dir is not None:
        return Path(config.run_dir, seed) if several else Path(config.run_dir)
    if config.resume:
        raise UserError("resume=true needs the folder of the run to go on with; add run_dir=<folder>")
    names = [Path(name).stem for name in config.corpora] if config.objective is Objective.lm else [config.env.name]
    return Path("runs", "+".join(names)[:100], f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{seed}")


def check_folder(folder: Path, config: TrainConfig) -> None:
    """UserError if the folder holds a run that is not to be resumed, or none, or another one, where one is."""
    stored = folder / "config.yaml"
    try:
        holds = stored.exists()
    except OSError as error:
        raise _unwritable(folder, error) from error
    if config.resume and not holds:
        raise UserError(f"nothing to resume in {str(folder)!r}: it has no config.yaml; give the run_dir of an earlier run")
    if config.resume:
        _refuse_other_settings(stored, config)
    elif holds:
        raise UserError(f"{str(folder)!r} already holds a run; add resume=true to go on with it, or choose another run_dir")
    above = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):  # said now, not after the base is loaded
        code = errno.EACCES if above.is_dir() else errno.ENOTDIR
        raise _unwritable(folder, OSError(code, os.strerror(code)))


def _refuse_other_settings(stored: Path, config: TrainConfig) -> None:
    """A resumed run keeps its settings: another trajectory would be neither the old run nor a new one.

    Settings that are newer than the run have their defaults.
    """
    try:
        before = flat_settings(stored.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {str(stored)!r}, so the run cannot be resumed: {error}; start again in another run_dir"
        ) from error
    now, usual = (flat_settings(to_yaml(one)) for one in (config, type(config)(adapter=type(config.adapter)())))
    before = usual | before
    changed = [key for key in now if key not in ("resume", "run_dir") and (key not in before or now[key] != before[key])]
    if changed:
        differences = ", ".join(f"{key} ({before.get(key)}, now {now[key]})" for key in changed)
        raise UserError(f"the run to resume has other settings: {differences}; give the same ones or another run_dir")


def begin(
    config: TrainConfig, base: Base, adapter: Adapter, optimizer: torch.optim.Optimizer, folder: Path
) -> tuple[checkpoint.Progress, dict[str, Tensor]]:
    """Counters and best state of a new run, whose folder is made, or of the last checkpoint of one that is resumed.

    UserError if that one was trained on other base weights, or the folder cannot be written.
    """
    progress, best = checkpoint.Progress(base=base.fingerprint), adapter.state()
    if not config.resume:
        open_folder(folder, config)
    elif (folder / "checkpoint.safetensors").exists():
        progress, best = checkpoint.load_checkpoint(folder / "checkpoint.safetensors", adapter.parameters(), optimizer)
    if progress.base != base.fingerprint:
        raise UserError(f"the run in {str(folder)!r} was trained on other base weights than those of {base.name!r}; load those")
    return progress, best


def open_folder(folder: Path, config: TrainConfig) -> None:
    """Make the folder and write config.yaml. UserError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", to_yaml(config))
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to the run folder {str(folder)!r} ({error.strerror}); choose another run_dir")


@contextmanager
def resumable(config: TrainConfig, folder: Path, command: list[str]) -> Iterator[None]:
    """Of a run that is interrupted within it, says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if (folder / "config.yaml").exists():
            print(f"\nstopped; go on with: {resume_command(config, folder, command)}")
        raise


def resume_command(config: TrainConfig, folder: Path, command: list[str]) -> str:
    """What to type to go on with the run in `folder`."""
    same = [word for word in command if word.partition("=")[0] not in ("seed", "run_dir", "resume")]
    return shlex.join([*same, f"seed={config.seed}", f"run_dir={folder}", "resume=true"])


def point_latest(folder: Path) -> None:
    """Make runs/<env>/latest a link to this run, where the file system has links."""
    link = folder.with_name(".latest")
    with suppress(OSError):
        link.unlink(missing_ok=True)
        link.symlink_to(folder.name)
        link.replace(folder.with_name("latest"))


def out_folder(path: str) -> Path:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to the folder {path!r} ({error.strerror}); choose another out") from error
    return Path(path)


def revision() -> str:
    """The git revision of the code, with "+" if files differ from it; "unknown" outside a checkout."""
    here = Path(__file__).parent
    try:
        _git(here, "ls-files", "--error-unmatch", Path(__file__).name)  # not a repository that merely holds an installation
        commit = _git(here, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
