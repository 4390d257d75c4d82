"""The embedded base's forward pass with each attention module and without, and selective attention fast and by its definition.

    python bench/attention.py

Both sides take turns, so that other work on the machine slows both; a ratio is that of the medians. One thread.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from svf_rl.adapters import make_adapter
from svf_rl.attention import selective
from svf_rl.attention.gated import GatedConfig, Output
from svf_rl.attention.selective import SelectiveConfig
from svf_rl.attention.shiftable import ShiftableConfig
from svf_rl.attention.soft_mask import Form, SoftMaskConfig
from svf_rl.base.load import BaseConfig, load_base

ROWS, TOKENS, REPEATS, LENGTH = 16, 64, 15, 256
MODULES: dict[str, Any] = {
    "shiftable, one specialist": ShiftableConfig(),
    "shiftable, 50 specialists, top 1": ShiftableConfig(specialists=50, rank=2, top_k=1),
    "gated, heads": GatedConfig(),
    "gated, pairs": GatedConfig(output=Output.none, rank=1),
    "soft_mask, bilinear": SoftMaskConfig(),
    "soft_mask, forget": SoftMaskConfig(form=Form.forget),
    "selective, multiplicative": SelectiveConfig(),
    "selective, linear": SelectiveConfig(form=selective.Form.linear),
    "selective, nonlinear": SelectiveConfig(form=selective.Form.nonlinear),
}


def side_by_side(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median milliseconds of each, taking turns, after one unmeasured turn."""
    taken: list[list[float]] = [[], []]
    for turn in range(repeats + 1):
        for side, work in enumerate((ours, theirs)):
            begun = time.perf_counter()
            work()
            if turn:
                taken[side].append(1000 * (time.perf_counter() - begun))
    return statistics.median(taken[0]), statistics.median(taken[1])


def row(name: str, ours: float, theirs: float) -> dict[str, Any]:
    return {"name": name, "ours": ours, "theirs": theirs, "unit": "ms", "ratio": ours / theirs}


@torch.no_grad()
def forwards() -> list[dict[str, Any]]:
    """ours: the adapted base; theirs: the base."""
    base = load_base(BaseConfig())
    other = load_base(BaseConfig())
    ids = torch.randint(0, 2000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    found = []
    for name, config in MODULES.items():
        adapter = make_adapter(base, config)
        adapter.install()
        found.append(row(name, *side_by_side(lambda: base.hidden(ids), lambda: other.hidden(ids), REPEATS)))
        adapter.uninstall()
    return found


@torch.no_grad()
def selective_forms() -> list[dict[str, Any]]:
    """ours: the exact fast form; theirs: keys and values of all pairs. Four heads of 32, one row of LENGTH tokens."""
    query, key, value, own_key, own_value = torch.randn(5, 1, 4, LENGTH, 32, generator=torch.Generator().manual_seed(0)).unbind(0)
    angles = torch.arange(LENGTH)[:, None] / 10000 ** (torch.arange(16) / 16)
    turn = (angles.repeat(1, 2)[None].cos(), angles.repeat(1, 2)[None].sin())
    visible = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    parts = (query, key, value, own_key, own_value, turn, visible)
    assert torch.allclose(selective.fast(*parts), selective.naive(*parts), atol=1e-4)
    times = side_by_side(lambda: selective.fast(*parts), lambda: selective.naive(*parts), 5)
    return [row(f"selective, fast against naive, length {LENGTH}", *times)]


def run() -> list[dict[str, Any]]:
    """Every comparison, as rows."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return forwards() + selective_forms()
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    for found in run():
        print(f"{found['name']:44} {found['ours']:8.1f} {found['unit']}  base {found['theirs']:8.1f}  ratio {found['ratio']:.2f}")


if __name__ == "__main__":
    main()
