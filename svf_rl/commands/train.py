"""`svf-rl train`: prepare a run, train it, compare base and expert on held-out questions, and write the run folder.

The folder, runs/<env>/<time> unless run_dir says otherwise, is explained in runs/README.md.
"""

import errno
import json
import os
import shlex
import subprocess
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from svf_rl.adapters import make_adapter, save_adapter
from svf_rl.base.load import Base, fingerprint, load_base
from svf_rl.config import Objective, TrainConfig
from svf_rl.errors import UserError
from svf_rl.evaluate.compare import Comparison, answers, compare, measures, show
from svf_rl.evaluate.stats import mean_interval
from svf_rl.files import write_json, write_text
from svf_rl.learn import checkpoint, trainer
from svf_rl.learn.tracking import Tracker, peak_memory, plot_curve
from svf_rl.progress import Progress
from svf_rl.rollout.episodes import Split, env_facts, make_env, split_size
from svf_rl.rollout.sampler import Sampling
from svf_rl.settings import flat_settings, to_yaml


def run(configs: list[TrainConfig], command: list[str]) -> None:
    """Train one expert for each configuration; several end in a table over seeds."""
    if configs[0].objective is Objective.lm:
        from svf_rl.commands import train_language  # which takes its folders from here

        train_language.run(configs, command)
        return
    folders = [run_folder(config, several=len(configs) > 1) for config in configs]
    for config, folder in zip(configs, folders, strict=True):
        check_folder(folder, config)  # all of them, before the first is trained
    summaries = [train_one(config, folder, command) for config, folder in zip(configs, folders, strict=True)]
    if len(summaries) > 1:
        print(seeds_table(summaries))


def train_one(config: TrainConfig, folder: Path, command: list[str]) -> dict[str, Any]:
    """One expert, from configuration to summary."""
    begun = time.monotonic()
    try:
        training = prepare(config, load_base(config.base), make_env(config.env), folder)
        with closing(training.tracker):
            trainer.train(training)
        return finish(training, config, command, begun)
    except KeyboardInterrupt:
        if (folder / "config.yaml").exists():
            print(f"\nstopped; go on with: {resume_command(config, folder, command)}")
        raise


def run_folder(config: TrainConfig, several: bool) -> Path:
    """The folder that run_dir names (of several seeds: one in it for each), or a new one under runs/."""
    seed = f"seed{config.seed}"
    if config.run_dir is not None:
        return Path(config.run_dir, seed) if several else Path(config.run_dir)
    if config.resume:
        raise UserError("resume=true needs the folder of the run to go on with; add run_dir=<folder>")
    name = Path(config.corpus).stem if config.objective is Objective.lm else config.env.name
    return Path("runs", name, f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{seed}")


def resume_command(config: TrainConfig, folder: Path, command: list[str]) -> str:
    """What to type to go on with the run in `folder`."""
    same = [word for word in command if word.partition("=")[0] not in ("seed", "run_dir", "resume")]
    return shlex.join([*same, f"seed={config.seed}", f"run_dir={folder}", "resume=true"])


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


def open_folder(folder: Path, config: TrainConfig) -> None:
    """Make the folder and write config.yaml. UserError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", to_yaml(config))
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to the run folder {str(folder)!r} ({error.strerror}); choose another run_dir")


def _refuse_other_settings(stored: Path, config: TrainConfig) -> None:
    """A resumed run keeps its settings: another trajectory would be neither the old run nor a new one."""
    try:
        before = flat_settings(stored.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {str(stored)!r}, so the run cannot be resumed: {error}; start again in another run_dir"
        ) from error
    now = flat_settings(to_yaml(config))
    changed = [key for key in now if key not in ("resume", "run_dir") and (key not in before or now[key] != before[key])]
    if changed:
        differences = ", ".join(f"{key} ({before.get(key)}, now {now[key]})" for key in changed)
        raise UserError(f"the run to resume has other settings: {differences}; give the same ones or another run_dir")


def prepare(config: TrainConfig, base: Base, env: Any, folder: Path) -> trainer.Run:
    """Factors, adapter, optimiser, the run folder and its tracker; with resume, at the state of the last checkpoint."""
    bar = Progress()
    rows = split_size(env, Split.train, config.algo.train_rows)
    adapter = make_adapter(base, config.adapter, bar)
    trained = adapter.parameters()
    optimizer = torch.optim.AdamW(trained.values(), lr=config.algo.learning_rate, weight_decay=0.0)  # decay would be to z = 0
    progress, best = checkpoint.Progress(base=base.fingerprint), adapter.state()
    if not config.resume:
        open_folder(folder, config)
    elif (folder / "checkpoint.safetensors").exists():
        progress, best = checkpoint.load_checkpoint(folder / "checkpoint.safetensors", trained, optimizer)
    if progress.base != base.fingerprint:
        raise UserError(f"the run in {str(folder)!r} was trained on other base weights than those of {base.name!r}; load those")
    adapter.install()
    tracker = Tracker(folder, bar, adapter.figures)
    tracker.start(progress.step)
    return trainer.Run(
        base, adapter, env, config.env.max_tokens, replace(config.algo, train_rows=rows), config.seed, config.valid_size, folder,
        tracker, optimizer, best, progress,
    )  # fmt: skip


def finish(run: trainer.Run, config: TrainConfig, command: list[str], begun: float) -> dict[str, Any]:
    """Test the best expert against the base, show it, and write expert, curve and summary."""
    run.adapter.load_state(run.best)
    comparison = test(run, config)
    run.adapter.uninstall()
    base_unchanged = fingerprint(run.base.model) == run.base.fingerprint
    path = run.folder / "expert.safetensors"
    save_adapter(path, run.adapter, config.adapter, about(run, config, command, comparison))
    plot_curve(run.folder, run.progress.base_valid, f"{config.env.name}, seed {config.seed}")
    summary = summarise(run, config, comparison, path, time.monotonic() - begun, base_unchanged)
    write_json(run.folder / "summary.json", summary)
    show(comparison, f"{config.env.name}: {summary['n_test']} held-out questions", run.env)
    if config.run_dir is None:
        point_latest(run.folder)
    print(f"expert of {summary['expert_bytes'] / 1024:.1f} KiB from step {run.progress.best_step}: {path}")
    return summary


def point_latest(folder: Path) -> None:
    """Make runs/<env>/latest a link to this run, where the file system has links."""
    link = folder.with_name(".latest")
    with suppress(OSError):
        link.unlink(missing_ok=True)
        link.symlink_to(folder.name)
        link.replace(folder.with_name("latest"))


def test(run: trainer.Run, config: TrainConfig) -> Comparison:
    """Greedy answers of base and expert to the test questions: the only time the test split is used."""
    sampling = Sampling(config.env.max_tokens, 0.0, config.algo.rows)
    with run.adapter.disabled():
        before = answers(run.base, run.env, "test", config.test_size, sampling, what="testing the base")
    return compare(before, answers(run.base, run.env, "test", config.test_size, sampling, what="testing the expert"))


def about(run: trainer.Run, config: TrainConfig, command: list[str], comparison: Comparison) -> dict[str, Any]:
    """The metadata of the expert file."""
    return {
        "base": run.base.name,
        "fingerprint": run.base.fingerprint,
        "environment": config.env.id,
        "environment_settings": json.dumps(config.env.settings),
        "command": shlex.join(command),
        "revision": revision(),
        "metrics": {
            "base_accuracy": comparison.base.value,
            "expert_accuracy": comparison.expert.value,
            "n_test": len(comparison.before),
            "valid_gain": run.progress.best - run.progress.base_valid,
        },
    }


def summarise(
    run: trainer.Run, config: TrainConfig, comparison: Comparison, expert: Path, seconds: float, base_unchanged: bool
) -> dict[str, Any]:
    """summary.json; runs/README.md explains its fields."""
    difference = comparison.difference
    return {
        "env": config.env.name,
        "base": run.base.name,
        "adapter": config.adapter.name,
        "seed": config.seed,
        "steps": run.progress.step,
        "best_step": run.progress.best_step,
        "trained_parameters": sum(p.numel() for p in run.adapter.parameters().values()),
        "expert_bytes": expert.stat().st_size,
        "seconds": round(seconds, 1),
        "training_seconds": round(run.progress.seconds, 1),
        "peak_memory": peak_memory(run.base.device),
        "base_accuracy": comparison.base.value,
        "expert_accuracy": comparison.expert.value,
        "n_test": len(comparison.before),
        "difference": difference.value,
        "difference_ci95": [difference.low, difference.high],
        "base_unchanged": base_unchanged,
        "skipped_steps": run.progress.skipped_steps,
        "faults": run.progress.faults,
        "verdicts": dict(Counter(e.verdict for e in comparison.after)),
        "measures": {"base": measures(run.env, comparison.before), "expert": measures(run.env, comparison.after)},
        **env_facts(run.env),
    }


def seeds_table(summaries: list[dict[str, Any]]) -> str:
    """A Markdown table of several seeds, with the mean gain and its interval over seeds."""
    lines = [
        "| seed | base % | expert % | difference [95 %] | trained | bytes | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for s in summaries:
        low, high = s["difference_ci95"]
        lines.append(
            f"| {s['seed']} | {100 * s['base_accuracy']:.1f} | {100 * s['expert_accuracy']:.1f} "
            f"| {100 * s['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] "
            f"| {s['trained_parameters']} | {s['expert_bytes']} | {s['seconds']:.0f} |"
        )
    mean = mean_interval([s["difference"] for s in summaries])
    lines.append(
        f"\nmean gain {100 * mean.value:+.1f} points, 95 % interval over seeds [{100 * mean.low:+.1f}, {100 * mean.high:+.1f}]"
    )
    return "\n".join(lines)


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
