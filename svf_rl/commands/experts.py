"""`svf-rl experts [folder]`: what a library holds."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from svf_rl.dispatch.choices import ExpertsConfig
from svf_rl.dispatch.library import find_experts, gain
from svf_rl.errors import ExpertError
from svf_rl.svf.expert import load_expert


def run(configs: list[ExpertsConfig], command: list[str]) -> None:
    for config in configs:
        console = Console(soft_wrap=True)
        console.print(table(find_experts(config.experts)))


def table(found: dict[str, Path]) -> Table:
    """Name, base, environment, gain in points, size; a damaged file says what is wrong instead."""
    listed = Table()
    for column in ("name", "base", "environment", "gain", "size"):
        listed.add_column(column, justify="right" if column in ("gain", "size") else "left")
    for name, path in found.items():
        listed.add_row(name, *_columns(path), f"{path.stat().st_size / 1024:.1f} KiB")
    return listed


def _columns(path: Path) -> tuple[str, str, str]:
    try:
        expert = load_expert(path)
    except ExpertError as error:
        return "", str(error), ""
    return str(expert.about["base"]), str(expert.about["environment"]), f"{100 * gain(expert):+.1f}"
