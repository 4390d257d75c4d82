"""The base's forward pass with each attention module and without, and selective attention fast and by its definition.

Two bases: the embedded one, of width 192, and four random layers in the shape of Qwen2.5-0.5B: what is made for every pair of
tokens costs the same for each head, so its share falls with the width.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from bench._measure import Row, row, side_by_side
from bench.rollout import QWEN_HALF, random_base
from svf_rl.adapters import make_adapter
from svf_rl.attention import selective
from svf_rl.attention.gated import GatedConfig, Output
from svf_rl.attention.selective import SelectiveConfig
from svf_rl.attention.shiftable import KeysValues, ShiftableConfig
from svf_rl.attention.soft_mask import Form, SoftMaskConfig
from svf_rl.base.load import Base, BaseConfig, load_base

ROWS, TOKENS, REPEATS, WIDE_REPEATS, LENGTH = 16, 64, 45, 5, 256
AWAY = 0.02  # how far
WIDE = QWEN_HALF | {"num_hidden_layers": 4, "vocab_size": 2048}
MODULES: dict[str, tuple[Any, str]] = {  # with the target of its time beside the base's
    "shiftable, one specialist": (ShiftableConfig(), "≤ 1.35"),
    "shiftable, one with its own keys": (ShiftableConfig(keys_values=KeysValues.own), ""),
    "shiftable, 50 specialists, top 1": (ShiftableConfig(specialists=50, rank=2, top_k=1), ""),
    "gated, heads": (GatedConfig(), "≤ 1.15"),
    "gated, pairs": (GatedConfig(output=Output.none, rank=1), "≤ 1.15"),
    "soft_mask, bilinear": (SoftMaskConfig(), "≤ 1.15"),
    "soft_mask, forget": (SoftMaskConfig(form=Form.forget), "≤ 1.15"),
    "soft_mask, original": (SoftMaskConfig(form=Form.original), "≤ 1.15"),
    "soft_mask, selective": (SoftMaskConfig(form=Form.selective), "≤ 1.15"),
    "selective, multiplicative": (SelectiveConfig(), ""),
    "selective, linear": (SelectiveConfig(form=selective.Form.linear), ""),
    "selective, nonlinear": (SelectiveConfig(form=selective.Form.nonlinear), ""),
}


@torch.no_grad()
def stir(adapter: Any) -> None:
    """Move every trainable tensor a little away from its start: an untrained module may have less to do than a trained one."""
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter.parameters().values():
        if parameter.requires_grad:
            parameter.add_(AWAY * torch.randn(parameter.shape, generator=generator))
    adapter.constrain()


@torch.no_grad()
def forwards(base: Base, other: Base, modules: Iterable[str], repeats: int, where: str = "") -> Iterator[Row]:
    """ours: the adapted base; theirs: the same without."""
    ids = torch.randint(0, 2000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    for name in modules:
        config, target = MODULES[name]
        adapter = make_adapter(base, config)
        stir(adapter)
        adapter.install()
        took = side_by_side(lambda: base.hidden(ids), lambda: other.hidden(ids), repeats, name)
        adapter.uninstall()
        yield row(f"forward, {name}{where}", *took, "s", target)


@torch.no_grad()
def selective_forms() -> Row:
    """ours: the exact fast form; theirs: keys and values of all pairs. Four heads of 32, one row of LENGTH tokens."""
    query, key, value, own_key, own_value = torch.randn(5, 1, 4, LENGTH, 32, generator=torch.Generator().manual_seed(0)).unbind(0)
    angles = torch.arange(LENGTH)[:, None] / 10000 ** (torch.arange(16) / 16)
    turn = (angles.repeat(1, 2)[None].cos(), angles.repeat(1, 2)[None].sin())
    visible = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    parts = (query, key, value, own_key, own_value, turn, visible)
    assert torch.allclose(selective.fast(*parts), selective.naive(*parts), atol=1e-4)
    took = side_by_side(lambda: selective.fast(*parts), lambda: selective.naive(*parts), 5, "selective")
    return row(f"selective, fast against naive, length {LENGTH}", *took, "s", "≥ 10")


def run() -> Iterator[Row]:
    """Every comparison, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        embedded = load_base(BaseConfig())
        yield from forwards(embedded, load_base(BaseConfig()), MODULES, REPEATS)
        wide = [random_base(embedded, WIDE, torch.float32) for _ in range(2)]
        promised = [name for name, (_, target) in MODULES.items() if target]
        yield from forwards(*wide, promised, WIDE_REPEATS, ", 0.5B shape")
        yield selective_forms()
    finally:
        torch.set_num_threads(threads)
