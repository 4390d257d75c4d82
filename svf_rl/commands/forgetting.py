"""`svf-rl forgetting`: learn tasks one after another with each adapter, and show what each forgets.

An adapter that is trained on and on starts each task where the last one ended, with KL to the base. Singular-value experts start
each task from the base; after task i the probe dispatches among the first i.
"""

import shlex
import time
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from svf_rl.adapters import open_adapter
from svf_rl.base.load import Base, fingerprint, load_base
from svf_rl.commands import train
from svf_rl.commands.folders import out_folder
from svf_rl.config import TrainConfig, read_config
from svf_rl.errors import UserError
from svf_rl.evaluate.cells import Column, Decoding, environment_column, measure
from svf_rl.evaluate.forgetting import ForgettingConfig, transfer
from svf_rl.evaluate.matrix import evaluate, figure
from svf_rl.evaluate.rows import Row, base_row, composed_rows, file_row
from svf_rl.files import write_json, write_text
from svf_rl.learn import trainer
from svf_rl.progress import Progress
from svf_rl.rollout.episodes import Split, make_env
from svf_rl.settings import listed


def run(configs: list[ForgettingConfig], command: list[str]) -> None:
    for config in configs:
        rates = adapters(config)
        folder, base, tasks = out_folder(config.out), load_base(config.base), listed(config.tasks)
        if len(tasks) < 2:
            raise UserError(f"forgetting needs at least two tasks, found {config.tasks!r}; give tasks=[math,code]")
        settings = {(name, task): train_config(config, name, rate, task) for name, rate in rates.items() for task in tasks}
        columns = [environment_column(settings[next(iter(rates)), task].env, Split.test, config.size) for task in tasks]
        before = [measure(base, base_row(), column, Decoding(), None).answers for column in columns]
        found = {}
        for name in rates:
            files = learn(base, {task: settings[name, task] for task in tasks}, folder / name, command)
            found[name] = accuracies(base, stages(base, files, dispatched=name == "svf"), columns, folder)
        after = [measure(base, base_row(), column, Decoding(), None).answers for column in columns]
        intact = {"base_unchanged": fingerprint(base.model) == base.fingerprint, "answers_equal": before == after}
        write(folder, tasks, found, {"command": shlex.join(command), **intact})


def adapters(config: ForgettingConfig) -> dict[str, float]:
    """The learning rate of each adapter."""
    names, rates = listed(config.adapters), listed(config.learning_rates)
    try:
        return dict(zip(names, map(float, rates), strict=True))
    except ValueError as error:
        raise UserError(f"expected one learning rate for each of {', '.join(names)}, found {config.learning_rates!r}") from error


def train_config(config: ForgettingConfig, adapter: str, rate: float, task: str) -> TrainConfig:
    """A training of one task, as `svf-rl train` would have it, patience off so that every way has the same budget."""
    words = [f"env={task}", f"adapter={adapter}", f"algo.learning_rate={rate}", f"algo.steps={config.steps}", "algo.patience=0"]
    made: TrainConfig = replace(read_config("train", [*words, f"seed={config.seed}"]), base=config.base, test_size=config.size)
    return made


def learn(base: Base, configs: dict[str, TrainConfig], folder: Path, command: list[str]) -> list[Path]:
    """The adapter's file after each task; a task whose file is there is not learnt again."""
    files: list[Path] = []
    for number, (task, config) in enumerate(configs.items(), 1):
        path = folder / f"{number}-{task}" / "expert.safetensors"
        if not path.exists():
            _learn_one(base, config, path.parent, files[-1] if files and config.adapter.name != "svf" else None, command)
        files.append(path)
    return files


def _learn_one(base: Base, config: TrainConfig, folder: Path, start: Path | None, command: list[str]) -> None:
    begun, interrupted = time.monotonic(), (folder / "checkpoint.safetensors").exists()
    config = replace(config, run_dir=str(folder), resume=interrupted)
    state = open_adapter(start, base)[0].state() if start is not None else None  # before another is installed
    training = train.prepare(config, base, make_env(config.env), folder)
    try:
        if state is not None and not interrupted:
            training.adapter.load_state(state)
            training.best = training.adapter.state()
        with closing(training.tracker):
            trainer.train(training)
        train.finish(training, config, command, begun)
    finally:
        training.adapter.uninstall()


def stages(base: Base, files: list[Path], dispatched: bool) -> list[Row]:
    """What answers after each task: the last file, or the probe's choice among the experts so far (of one, that one)."""
    rows = [file_row(f"{path.parent.parent.name} {path.parent.name}", path, base) for path in files]
    if not dispatched:
        return rows
    so_far = [{path.parent.name: path for path in files[: i + 1]} for i in range(1, len(files))]
    composed = [composed_rows(library, base, ["probe"], Progress())[-1] for library in so_far]
    return [rows[0], *(row._replace(name=f"probe of {i}") for i, row in enumerate(composed, 2))]


def accuracies(base: Base, rows: list[Row], columns: list[Column], folder: Path) -> list[list[float]]:
    """R[i][j]: accuracy on task j after task i, row 0 the base."""
    every = [base_row(), *rows]
    cells = evaluate(base, every, columns, Decoding(), folder)
    return [[figure(cells[row.name, column.name], None, 1, 1).value for column in columns] for row in every]


def write(folder: Path, tasks: list[str], found: dict[str, list[list[float]]], about: dict[str, Any]) -> None:
    results = {name: {"accuracy": table, **asdict(transfer(table))} for name, table in found.items()}
    write_json(folder / "forgetting.json", {**about, "tasks": tasks, "adapters": results})
    lines = ["| | average accuracy | backward transfer | forgetting | forward transfer |", "|---|---:|---:|---:|---:|"]
    for name, table in found.items():
        lines.append(f"| {name} | " + " | ".join(f"{100 * value:+.1f}" for value in asdict(transfer(table)).values()) + " |")
    intact = f"base tensors hash equal: {about['base_unchanged']}; the base's answers byte-equal: {about['answers_equal']}"
    write_text(folder / "forgetting.md", "\n".join([f"`{about['command']}`", "", *lines, "", intact, ""]))
    print("\n".join([*lines, "", intact]))
