"""States of packed tokens beside those of padded rows."""

import pytest
import torch
from torch import Tensor

from svf_rl.base.load import Base
from svf_rl.learn.packed import packed_hidden
from svf_rl.rollout.modules import attention_masks

LENGTHS = (3, 11, 1, 7)


def rows(base: Base) -> tuple[Tensor, ...]:
    """ids, positions, masks and what is there, of rows of random tokens; padding sees and is seen by everything before it."""
    time, there = max(LENGTHS), torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(256, (len(LENGTHS), time), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(time).expand_as(ids)
    masks = attention_masks(base, positions, positions, torch.ones(len(ids), time, time, dtype=torch.bool).tril())
    return ids, positions, masks, there


@torch.no_grad()
def test_states_are_those_of_padded_rows(base: Base) -> None:
    ids, positions, masks, there = rows(base)
    found = packed_hidden(base, ids, positions, masks, there)
    expected = base.hidden(ids, position_ids=positions, attention_mask=masks, use_cache=False)
    torch.testing.assert_close(found[there], expected[there], atol=1e-5, rtol=1e-4)
    assert not found[~there].any()


def test_layers_run_on_tokens_only(tiny_base: Base) -> None:
    shapes: list[tuple[int, ...]] = []
    layer = tiny_base.model.model.layers[0].mlp
    handle = layer.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape[:-1])))
    packed_hidden(tiny_base, *rows(tiny_base))
    handle.remove()
    assert shapes == [(1, sum(LENGTHS))]


def test_a_failure_leaves_the_base_as_it_was(tiny_base: Base) -> None:
    ids, positions, masks, there = rows(tiny_base)
    with pytest.raises(IndexError):
        packed_hidden(tiny_base, ids, positions, masks[..., :2], there)
    assert tiny_base.model.config._attn_implementation == "sdpa"
