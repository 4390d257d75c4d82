"""`svf-rl matrix`: base, experts, mixtures and dispatchers on every held-out test, as a table, JSON and CSV."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from svf_rl.base.load import Base, fingerprint, load_base
from svf_rl.commands.folders import out_folder, revision
from svf_rl.config import read_config
from svf_rl.errors import UserError
from svf_rl.evaluate.cells import HUMAN, Column, Decoding, environment_column, human_column
from svf_rl.evaluate.matrix import Figure, MatrixConfig, divergences, evaluate, figures, full, short, to_csv, to_markdown, to_table
from svf_rl.evaluate.rows import Row, base_row, composed_rows, file_row, find_files
from svf_rl.files import write_json, write_text
from svf_rl.progress import Progress
from svf_rl.settings import listed


def run(configs: list[MatrixConfig], command: list[str]) -> None:
    for config in configs:
        base, folder = load_base(config.base), out_folder(config.out)
        rows = make_rows(config, base)
        columns = [make_column(name, config) for name in listed(config.columns)]
        decoding = Decoding(config.temperature, config.samples, config.seed)
        found = figures(evaluate(base, rows, columns, decoding, folder, config.rows), rows, columns, decoding, config.k)
        write(folder, found, facts(config, base, command))
        show(found, config)
        print(f"the matrix is in {folder}/matrix.json, matrix.csv and matrix.md")


def make_rows(config: MatrixConfig, base: Base) -> list[Row]:
    """The base, each file, then what is composed of them. UserError for two rows of one name."""
    files = find_files(config.experts) if config.experts else {}
    singles = [file_row(name, path, base) for name, path in files.items()]
    rows = [base_row(), *singles, *composed_rows(files, base, listed(config.dispatchers), Progress())]
    names = [row.name for row in rows]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two rows would be named {twice[0]!r}; rename the expert's folder")
    return rows


def make_column(name: str, config: MatrixConfig) -> Column:
    if name == HUMAN:
        return human_column(config.size)
    return environment_column(read_config("evaluate", [f"env={name}"]).env, config.split, config.size)


def facts(config: MatrixConfig, base: Base, command: list[str]) -> dict[str, Any]:
    """What the figures were made with, and whether the base is what it was."""
    unchanged = fingerprint(base.model) == base.fingerprint
    made = {"command": shlex.join(command), "revision": revision(), "fingerprint": base.fingerprint, "base_unchanged": unchanged}
    return {**made, "config": json.loads(json.dumps(asdict(config), default=str))}


def write(folder: Path, found: list[Figure], about: dict[str, Any]) -> None:
    write_json(folder / "matrix.json", {**about, "cells": [asdict(f) for f in found]})
    write_text(folder / "matrix.csv", to_csv(found))
    compared = sum(f.p_holm is not None and f.row != "oracle" for f in found)
    tables = [
        f"`{about['command']}`\n\nRight answers in % with 95 % intervals; human: nats per token of held-out text, lower is better.",
        to_markdown(found, full),
        f"Paired difference to the base; * p < 0.05 after Holm's correction for {compared} comparisons.",
        to_markdown(found, short),
        "KL(base || row), nats per token of the base's answers.",
        to_markdown([f for f in found if f.column != HUMAN], divergences),
    ]
    write_text(folder / "matrix.md", "\n\n".join(tables) + "\n")


def show(found: list[Figure], config: MatrixConfig) -> None:
    header, lines = to_table(found, short)
    how = "greedy" if config.temperature == 0 else f"pass@1 of {config.samples} at temperature {config.temperature:g}"
    table = Table(title=f"right answers in %, {how}, up to {config.size} questions; human: nats per token", show_lines=False)
    for name in header:
        table.add_column(name, justify="right" if name else "left")
    for line in lines:
        table.add_row(*line)
    Console().print(table)
    print("+ and -: paired difference to the base; *: p < 0.05 after Holm's correction")
