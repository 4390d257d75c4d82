"""`svf-rl train objective=lm`: train an adapter on a corpus, compare perplexities on held-out text, and write the run folder.

Of the test rows three perplexities are shown: the base's, the adapted model's, and the adapted model's with its gates closed, which
must be the base's bit for bit. Shiftable attention shows its gates too, by layer, on text of each corpus and on general text, and
draws them (gates.png). Several seeds end in a table over seeds. With lm.start the run begins at a trained adapter (see
learn/start.py).
"""

import math
import shlex
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svf_rl.adapter import Adapter
from svf_rl.adapters import adapter_file, make_adapter, save_adapter
from svf_rl.attention.adapter import AttentionAdapter
from svf_rl.attention.shiftable import freeze_first
from svf_rl.base.load import Base, fingerprint, load_base
from svf_rl.base.texts import SHARES, read_corpus, windows
from svf_rl.commands.folders import begin, point_latest, resumable, revision, run_folders
from svf_rl.config import TrainConfig
from svf_rl.errors import UserError
from svf_rl.evaluate import figures, table
from svf_rl.evaluate.stats import paired_difference
from svf_rl.files import write_bytes, write_json
from svf_rl.learn import language
from svf_rl.learn.prior import fit_prior, prior_file, save_prior, shares
from svf_rl.learn.start import open_gates, start_at
from svf_rl.learn.tracking import Tracker, peak_memory, read_rows
from svf_rl.progress import Progress


def run(configs: list[TrainConfig], command: list[str]) -> None:
    """Train one adapter for each configuration; several end in a table over seeds."""
    summaries = [train_one(config, folder, command) for config, folder in zip(configs, run_folders(configs), strict=True)]
    if len(summaries) > 1:
        print(seeds_table(summaries))


def train_one(config: TrainConfig, folder: Path, command: list[str]) -> dict[str, Any]:
    """One adapter, from configuration to summary."""
    begun = time.monotonic()
    with resumable(config, folder, command):
        training = prepare(config, load_base(config.base), folder)
        with closing(training.tracker):
            language.train(training)
        if config.lm.prior:
            keep_prior(training, config, command)
        return finish(training, config, command, begun)


def prepare(config: TrainConfig, base: Base, folder: Path) -> language.LanguageRun:
    """Texts, adapter, optimiser, the run folder and its tracker; with resume, at the state of the last checkpoint."""
    texts, bar = read_texts(config, base), Progress()
    adapter = make_adapter(base, config.adapter, bar)
    older = start(config, base, adapter, folder)
    trained = adapter.parameters()
    optimizer = torch.optim.AdamW([p for p in trained.values() if p.requires_grad], weight_decay=0.0)
    progress, best = begin(config, base, adapter, optimizer, folder)
    progress.older = older or progress.older
    if progress.older and isinstance(adapter, AttentionAdapter):
        freeze_first(adapter, progress.older)
    adapter.install()
    tracker = Tracker(folder, bar, adapter.figures)
    tracker.start(progress.step)
    run = language.LanguageRun(base, adapter, texts, config.lm, config.seed, folder, tracker, optimizer, best, progress)
    if older:
        open_gates(run)
    return run


def start(config: TrainConfig, base: Base, adapter: Adapter, folder: Path) -> int:
    """Begin at the adapter that lm.start names, unless a checkpoint holds what came of it. Returns what `start_at` does."""
    if config.lm.start is None or (config.resume and (folder / "checkpoint.safetensors").exists()):
        return 0
    older = start_at(adapter_file(config.lm.start), adapter, config.adapter, base)
    if older and len(config.corpora) > 1:
        raise UserError(f"specialists that are added with lm.start learn one corpus, found {config.corpus}; add them one by one")
    return older


def read_texts(config: TrainConfig, base: Base) -> language.Texts:
    """Every corpus as rows of the base's tokens."""
    if config.lm.length > base.context:
        raise UserError(f"lm.length must be at most the context of the base, {base.context}, not {config.lm.length}")
    special = {text: read_sides(name, config, base) for text, name in titles(config).items()}
    return language.Texts(special, read_sides(config.lm.general, config, base))


def titles(config: TrainConfig) -> dict[str, str]:
    """The corpora by their names in tables: special for a single one, else special1, special2, ..."""
    several = len(config.corpora) > 1
    return {f"special{k}" if several else "special": name for k, name in enumerate(config.corpora, 1)}


def read_sides(name: str, config: TrainConfig, base: Base) -> dict[str, Tensor]:
    """One corpus as rows of the base's tokens, by side."""
    documents = read_corpus(name)
    return {which: windows(documents, base.codec, config.lm.length + 1, which) for which in SHARES}


def origin(run: language.LanguageRun, config: TrainConfig, command: list[str], metrics: dict[str, Any]) -> dict[str, Any]:
    """What a file of this run says of where it comes from."""
    return {
        "base": run.base.name,
        "fingerprint": run.base.fingerprint,
        "environment": f"lm:{config.corpus}",
        "command": shlex.join(command),
        "revision": revision(),
        "metrics": metrics,
    }


def keep_prior(run: language.LanguageRun, config: TrainConfig, command: list[str]) -> None:
    """Fit the geometric prior to all corpora, show how it does on their test parts, and write it beside the adapter."""
    with run.adapter.disabled():
        found = fit_prior(run.base, run.texts)
        right = shares(run.base, found, run.texts)
    save_prior(prior_file(run.folder / "expert.safetensors"), found, origin(run, config, command, right))
    print("prior on held-out text: " + ", ".join(f"{share:.1%} of {name} to its own branch" for name, share in right.items()))


def finish(run: language.LanguageRun, config: TrainConfig, command: list[str], begun: float) -> dict[str, Any]:
    """Test the best parameters against the base, show it, and write adapter, curve and summary."""
    run.adapter.load_state(run.best)
    results = {name: test(run, corpus["test"]) for name, corpus in {**run.texts.special, "general": run.texts.general}.items()}
    run.adapter.uninstall()
    path = run.folder / "expert.safetensors"
    about = origin(run, config, command, {name: result["perplexity"] for name, result in results.items()})
    save_adapter(path, run.adapter, config.adapter, about)
    summary = {
        "corpus": config.corpus,
        "general_corpus": config.lm.general,
        "base": run.base.name,
        "adapter": config.adapter.name,
        "seed": config.seed,
        "steps": run.progress.step,
        "best_step": run.progress.best_step,
        "trained_parameters": sum(p.numel() for p in run.adapter.parameters().values() if p.requires_grad),
        "expert_bytes": path.stat().st_size,
        "seconds": round(time.monotonic() - begun, 1),
        "training_seconds": round(run.progress.seconds, 1),
        "peak_memory": peak_memory(run.base.device),
        **results,
        "base_unchanged": fingerprint(run.base.model) == run.base.fingerprint,
        "skipped_steps": run.progress.skipped_steps,
    }
    write_json(run.folder / "summary.json", summary)
    plot_curve(run.folder, 1 / run.progress.base_valid, f"{config.corpus}, seed {config.seed}")
    plot_gates(run.folder, results)
    show(results, titles(config))
    if config.run_dir is None:
        point_latest(run.folder)
    print(f"adapter of {summary['expert_bytes'] / 1024:.1f} KiB from step {run.progress.best_step}: {path}")
    return summary


def test(run: language.LanguageRun, ids: Tensor) -> dict[str, Any]:
    """Base, closed and adapted on the same rows. The interval is that of the paired difference in nats, over rows."""
    with run.adapter.disabled():
        before = language.held_out_nats(run.base, ids)
    with language.closed(run.adapter):
        shut = language.held_out_nats(run.base, ids)
    after = language.held_out_nats(run.base, ids)
    change = paired_difference(before.mean(1).tolist(), after.mean(1).tolist())
    gates: dict[str, Any] = {}
    if isinstance(run.adapter, AttentionAdapter) and run.adapter.name == "shiftable":
        gates["gates"] = language.mean_gates(run.base, run.adapter, ids)
    return {
        "tokens": before.numel(),
        "perplexity": {"base": perplexity(before), "closed": perplexity(shut), "adapted": perplexity(after)},
        "nats": change.value,
        "nats_ci95": [change.low, change.high],
        "closed_is_base": torch.equal(before, shut),
        **gates,
    }


def perplexity(nats: Tensor) -> float:
    """exp of the mean."""
    return math.exp(nats.mean().item())


def show(results: dict[str, dict[str, Any]], named: dict[str, str]) -> None:
    """The tables: perplexities, and gates by layer."""
    if len(named) > 1:
        print(", ".join(f"{text}: {name}" for text, name in named.items()))
    print(f"{'held-out text':14} {'base':>8} {'closed':>8} {'adapted':>8}  change [95 %]")
    for name, found in results.items():
        values = " ".join(f"{found['perplexity'][key]:8.2f}" for key in ("base", "closed", "adapted"))
        change, low, high = (100 * math.expm1(nats) for nats in (found["nats"], *found["nats_ci95"]))
        equal = "equal" if found["closed_is_base"] else "DIFFERENT"
        print(f"{name:14} {values}  {change:+.1f} % [{low:+.1f}, {high:+.1f}]  closed and base: {equal}")
    if gates := gates_of(results):
        print("gates by layer: base, then specialists")
        for layer, texts in enumerate(zip(*gates.values(), strict=True)):
            shown = (f"{name} {' '.join(f'{gate:.2f}' for gate in own)}" for name, own in zip(gates, texts, strict=True))
            print(f"  layer {layer}   {'   '.join(shown)}")


def gates_of(results: dict[str, dict[str, Any]]) -> dict[str, list[list[float]]]:
    """For each text the mean gates of every layer; empty where the adapter has none."""
    return {name: found["gates"] for name, found in results.items() if "gates" in found}


def seeds_table(summaries: list[dict[str, Any]]) -> str:
    """Each seed's held-out texts, then their means over seeds, as Markdown."""
    runs = [("", summary) for summary in summaries]
    lines = [line for one in runs for line in table.text_lines([one])]
    return table.texts_to_markdown([*lines, *table.text_lines(runs)])


def plot_gates(folder: Path, results: dict[str, dict[str, Any]]) -> None:
    """gates.png: the mean gate of every branch by text and layer, where the adapter has gates."""
    if gates := gates_of(results):
        write_bytes(folder / "gates.png", figures.png(figures.gate_map(gates)))


def plot_curve(folder: Path, base_valid: float, title: str) -> None:
    """curve.png: the loss of the steps, and the perplexity of the held-out text."""
    from matplotlib.figure import Figure  # slow to import, and only this needs it

    rows = read_rows(folder / "metrics.jsonl")
    checks = [(0, base_valid)] + [(row["step"] + 1, row["valid_perplexity"]) for row in rows if "valid_perplexity" in row]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = [row["step"] + 1 for row in rows]
    axes.plot(steps, [math.exp(row["loss"]) for row in rows], color="#0072b2", linewidth=1, label="exp(loss), training rows")
    axes.plot(*zip(*checks, strict=True), color="#d55e00", marker="o", label="perplexity, held out")
    axes.set(xlabel="step", ylabel="perplexity", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "curve.png", dpi=120)
