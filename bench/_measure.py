"""What every measurement shares: sides that take turns, peak memory, rows of the table, and peers that may be missing.

A side is a function without arguments. Sides take turns within a round, so that other work on the machine slows all of them, and a
figure is the median over rounds. A row is a dict: name, ours, theirs, unit, ratio, and the target of the ratio, if it has one.
"""

import gc
import importlib
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from svf_rl.progress import Progress

MIB = 2**20
BAR = Progress()
Side = Callable[[], Any]
Row = dict[str, Any]


class Missing(Exception):
    """A peer that is not installed; the message names it."""


def peer(name: str) -> Any:
    """The module of that name. Missing if there is none."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Missing(f"{name} cannot be imported ({error}); its rows are left out: pip install 'svf-rl[bench]'") from error


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(side: Side) -> float:
    synchronize()
    begun = time.perf_counter()
    side()
    synchronize()
    return time.perf_counter() - begun


def turns(sides: Mapping[str, Side], rounds: int, what: str, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each side in each round, after `warm` rounds that do not count; every other round is in the opposite order."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    with BAR.count((warm + rounds) * len(sides), what) as done:
        for turn in range(warm + rounds):
            for name, side in list(sides.items())[:: -1 if turn % 2 else 1]:
                took = seconds(side)
                if turn >= warm:
                    taken[name].append(took)
                done(1)
    return taken


def medians(taken: Mapping[str, list[float]]) -> list[float]:
    return [statistics.median(values) for values in taken.values()]


def side_by_side(ours: Side, theirs: Side, rounds: int, what: str) -> list[float]:
    """Median seconds of both."""
    return medians(turns({"ours": ours, "theirs": theirs}, rounds, what))


def row(name: str, ours: float, theirs: float, unit: str, target: str = "", **more: Any) -> Row:
    """target "≥ 5": the ratio is how many times better ours is, less of a time or more of a rate. "≤ 1.3": it is ours / theirs."""
    lower = not unit.endswith("/s")
    ratio = ours / theirs if target.startswith("≤") or not lower else theirs / ours
    bound = float(target.split()[1]) if target else 0.0
    met = {"≥": ratio >= bound, "≤": ratio <= bound}.get(target[:1])
    return {"name": name, "ours": ours, "theirs": theirs, "unit": unit, "ratio": ratio, "target": target, "met": met, **more}


def peak(side: Side) -> float:
    """MiB of the most that tensors made by the side held at once."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        side()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        side()  # the profiler sees a tensor end only if it saw it begin, so what the side replaces must be made while it looks
        with record_function("the second time"):
            side()
    held = most = 0
    for event in sorted(record.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "the second time":
            held = most = 0
        elif event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / MIB


def alive() -> float:
    """MiB of all tensors there are now, each piece of memory once."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()) / MIB


@contextmanager
def installed(adapter: Any) -> Any:
    """Within it, the adapter is in its base; None is no adapter."""
    if adapter is not None:
        adapter.install()
    try:
        yield
    finally:
        if adapter is not None:
            adapter.uninstall()


def table(rows: Iterable[Row]) -> str:
    """One line for each row; a dash where nothing was promised."""
    lines = [f"{'':66} {'ours':>10} {'theirs':>10} {'':16} {'ratio':>7} {'target':>7}"]
    for found in rows:
        met = {True: "met", False: "NOT MET"}.get(found.get("met"), "")  # type: ignore[arg-type]
        figures = f"{found['ours']:10.4g} {found['theirs']:10.4g} {found['unit']:16} {found['ratio']:7.2f}"
        lines.append(f"{found['name']:66} {figures} {found.get('target') or '-':>7} {met}")
    return "\n".join(re.sub(r" +$", "", line) for line in lines)
