"""`svf-rl train`: prepare a run, train it, compare base and expert on held-out questions, and write the run folder.

The folder, runs/<env>/<time> unless run_dir says otherwise, is explained in runs/README.md.
"""

import json
import shlex
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from svf_rl.adapters import make_adapter, save_adapter
from svf_rl.base.load import Base, fingerprint, load_base
from svf_rl.commands import train_language
from svf_rl.commands.folders import begin, point_latest, resumable, revision, run_folders
from svf_rl.config import Objective, TrainConfig
from svf_rl.evaluate.compare import Comparison, answers, compare, measures, show
from svf_rl.evaluate.stats import mean_interval
from svf_rl.files import write_json
from svf_rl.learn import trainer
from svf_rl.learn.tracking import Tracker, peak_memory, plot_curve
from svf_rl.progress import Progress
from svf_rl.rollout.episodes import Split, env_facts, make_env, split_size
from svf_rl.rollout.sampler import Sampling


def run(configs: list[TrainConfig], command: list[str]) -> None:
    """Train one expert for each configuration; several end in a table over seeds."""
    if configs[0].objective is Objective.lm:
        train_language.run(configs, command)
        return
    summaries = [train_one(config, folder, command) for config, folder in zip(configs, run_folders(configs), strict=True)]
    if len(summaries) > 1:
        print(seeds_table(summaries))


def train_one(config: TrainConfig, folder: Path, command: list[str]) -> dict[str, Any]:
    """One expert, from configuration to summary."""
    begun = time.monotonic()
    with resumable(config, folder, command):
        training = prepare(config, load_base(config.base), make_env(config.env), folder)
        with closing(training.tracker):
            trainer.train(training)
        return finish(training, config, command, begun)


def prepare(config: TrainConfig, base: Base, env: Any, folder: Path) -> trainer.Run:
    """Factors, adapter, optimiser, the run folder and its tracker; with resume, at the state of the last checkpoint."""
    bar = Progress()
    rows = split_size(env, Split.train, config.algo.train_rows)
    adapter = make_adapter(base, config.adapter, bar)
    trained = adapter.parameters()
    optimizer = torch.optim.AdamW(trained.values(), lr=config.algo.learning_rate, weight_decay=0.0)  # decay would be to z = 0
    progress, best = begin(config, base, adapter, optimizer, folder)
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
