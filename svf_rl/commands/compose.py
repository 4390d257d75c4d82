"""`svf-rl compose env=<new task> experts=[a,b]`: a mixture for a new task, saved as an ordinary expert file with its recipe.

It is found on questions of the training split, chosen on the validation split, and reported on the test split.
"""

import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from svf_rl.base.load import Base, load_base
from svf_rl.commands.folders import revision
from svf_rl.dispatch.choices import ComposeConfig
from svf_rl.dispatch.dispatcher import BASE, mixture
from svf_rl.dispatch.fewshot import Composed, compose
from svf_rl.dispatch.library import Library, open_library, specialists
from svf_rl.dispatch.population import Population
from svf_rl.errors import UserError
from svf_rl.evaluate.compare import right
from svf_rl.evaluate.stats import paired_difference, proportion
from svf_rl.files import write_json
from svf_rl.progress import Progress
from svf_rl.rollout.episodes import Split, make_env, split_size
from svf_rl.rollout.sampler import Sampling
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.svf.expert import save_expert
from svf_rl.types import Expert


def run(configs: list[ComposeConfig], command: list[str]) -> None:
    for config in configs:
        _compose(config, command)


def _compose(config: ComposeConfig, command: list[str]) -> None:
    folder = _folder(config)
    base = load_base(config.base)
    everyone, adapter = open_library(config.experts, base, config.allow_other_base)
    library = specialists(everyone)
    adapter.install()
    begun = time.monotonic()
    composed = compose(base, adapter, library, config.env, config.dispatch, config.seed, Progress())
    seconds = time.monotonic() - begun
    marks = test(base, adapter, library, composed, config)
    recipe = {
        "experts": list(library),
        "weights": composed.chosen.weights.tolist(),
        "chosen": composed.chosen.name,
        "valid": {c.name: c.valid for c in composed.compared},
        "search": composed.history,
        "seconds": round(seconds, 1),
    }
    path = folder / "expert.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    save_expert(path, Expert(_z(adapter, library, composed.chosen.weights), _about(base, library, config, command, marks, recipe)))
    accuracies = {name: sum(r) / len(r) for name, r in marks.items()}
    write_json(folder / "composition.json", recipe | {"env": config.env.name, "test": accuracies, "seed": config.seed})
    show(marks, composed, f"{config.env.name}: {len(marks[BASE])} held-out questions")
    print(f"{composed.chosen.name}, found in {seconds:.0f} s: {path}")


def _folder(config: ComposeConfig) -> Path:
    name = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-composed-seed{config.seed}"
    folder = Path(config.run_dir) if config.run_dir else Path("runs", config.env.name, name)
    if (folder / "expert.safetensors").exists():
        raise UserError(f"{str(folder)!r} already holds an expert; choose another run_dir")
    return folder


def test(base: Base, adapter: SVFAdapter, library: Library, composed: Composed, config: ComposeConfig) -> dict[str, list[float]]:
    """Which test questions each candidate answers rightly; those that one of them lost to a fault are left out."""
    env = make_env(config.env)
    n = split_size(env, Split.test, config.test_size)
    population = Population(base, adapter, list(library.values()), env, Sampling(config.env.max_tokens, 0.0, config.dispatch.rows))
    wanted = [c for c in composed.compared if c is composed.chosen or c.name in (*library, "uniform", BASE)]
    played = [population.play(c.weights[None], Split.test, range(n))[0] for c in Progress().over(wanted, "testing")]
    kept = [i for i in range(n) if all(own[i] is not None for own in played)]
    marks = {c.name: [right(e) for i in kept if (e := own[i])] for c, own in zip(wanted, played, strict=True)}
    return marks | {BASE: marks.get(BASE) or _base_marks(population, library, n, kept)}


def _base_marks(population: Population, library: Library, n: int, kept: Sequence[int]) -> list[float]:
    (own,) = population.play(torch.zeros(1, len(library)), Split.test, range(n))
    return [right(e) for i in kept if (e := own[i])]


def _z(adapter: SVFAdapter, library: Library, weights: Tensor) -> dict[str, Tensor]:
    mixed = mixture(list(library.values()), weights)
    return {name: torch.ones_like(s).cpu() for name, s in adapter.spectra.items()} if mixed is None else dict(mixed.z)


def _about(
    base: Base, library: Library, config: ComposeConfig, command: list[str], marks: dict[str, list[float]], recipe: dict[str, Any]
) -> dict[str, Any]:
    first = next(iter(library.values())).about
    chosen = marks[recipe["chosen"]]
    metrics = {"base_accuracy": sum(marks[BASE]) / len(chosen), "expert_accuracy": sum(chosen) / len(chosen), "n_test": len(chosen)}
    if BASE in recipe["valid"]:
        metrics["valid_gain"] = recipe["valid"][recipe["chosen"]] - recipe["valid"][BASE]
    return {
        "base": base.name,
        "fingerprint": base.fingerprint,
        "targets": first["targets"],
        "rank": first["rank"],
        "parametrisation": "composed",
        "environment": config.env.id,
        "environment_settings": json.dumps(config.env.settings),
        "command": shlex.join(command),
        "revision": revision(),
        "metrics": metrics,
        "recipe": recipe,
    }


def show(marks: dict[str, list[float]], composed: Composed, title: str) -> None:
    """The candidates' accuracy on both splits, and on the test split the chosen one's lead over each."""
    table = Table(title=title)
    for column in ("", "valid %", "test % [95 %]", "chosen is better by [95 %]"):
        table.add_column(column, justify="right" if column else "left")
    valid = {c.name: c.valid for c in composed.compared}
    for name, own in marks.items():
        lead = paired_difference(own, marks[composed.chosen.name])
        gap = f"{100 * lead.value:+.1f} [{100 * lead.low:+.1f}, {100 * lead.high:+.1f}]" if name != composed.chosen.name else ""
        table.add_row(name, f"{100 * valid[name]:.0f}" if name in valid else "", str(proportion(int(sum(own)), len(own))), gap)
    Console().print(table)
