"""The engine runs every family it names, and refuses what it would get wrong; test_sampler.py holds it to the library's tokens."""

import copy
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F

from svf_rl.base.load import Base
from svf_rl.rollout import engine
from svf_rl.rollout.engine import Engine, Unknown, make_forward
from svf_rl.rollout.modules import Modules
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.svf.factorize import factorize


@pytest.fixture
def base_copy(tiny_base: Base) -> Base:
    return dataclasses.replace(tiny_base, model=copy.deepcopy(tiny_base.model))


def states(forward: Any, prompts: torch.Tensor, new: torch.Tensor) -> list[torch.Tensor]:
    """Hidden states after prompts [2, time], then after each column of `new`."""
    rows = torch.arange(2)
    found = [forward.prefill(prompts, torch.full((2,), prompts.shape[1]), rows, rows)]
    return found + [forward.decode(ids, torch.full((2,), prompts.shape[1] + t)) for t, ids in enumerate(new.T)]


def test_every_family_runs_on_the_engine(base: Base) -> None:
    """And computes what the library's forward computes, over several moves of the block and past Mistral's window."""
    generator = torch.Generator().manual_seed(0)
    prompts, new = (torch.randint(0, 256, (2, n), generator=generator) for n in (13, 40))
    forward = make_forward(base, 2, 53)
    assert isinstance(forward, Engine)
    with torch.no_grad():
        expected = base.hidden(torch.cat([prompts, new], 1), use_cache=False)
        for t, found in enumerate(states(forward, prompts, new)):
            torch.testing.assert_close(found, expected[:, 12 + t], atol=1e-4, rtol=1e-4)


def test_large_matrices_are_read_in_place(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svf_rl.rollout.layer.PACKED", 0)
    assert isinstance(make_forward(base, 1, 8), Engine)


def test_weights_are_read_as_they_are_adapted(tiny_base: Base) -> None:
    adapter = SVFAdapter(tiny_base.model, factorize(tiny_base, "attention+mlp"))
    adapter.install()
    try:
        with torch.no_grad():
            for z in adapter.parameters().values():
                z.mul_(1.5)
        assert isinstance(make_forward(tiny_base, 1, 8), Engine)
    finally:
        adapter.uninstall()


# ---- what it must not run


def refused(base: Base, caplog: Any, reason: str) -> None:
    engine._told.clear()
    with caplog.at_level(logging.WARNING):
        assert isinstance(make_forward(base, 2, 8), Modules)
        assert isinstance(make_forward(base, 2, 8), Modules)
    (record,) = caplog.records  # told once
    assert reason in record.message


def test_another_family(make_base: Callable[..., Base], caplog: Any) -> None:
    shape = {"vocab_size": 300, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    refused(make_base(transformers.Gemma2Config(**shape, head_dim=12, intermediate_size=80)), caplog, "'gemma2'")


def hook(base: Base) -> None:
    base.model.model.layers[1].self_attn.register_forward_hook(lambda module, args, out: out)


def replace(base: Base) -> None:
    class Mine(type(base.model.model.layers[0].mlp)):  # type: ignore[misc]
        pass

    base.model.model.layers[0].mlp.__class__ = Mine


def patch(base: Base) -> None:
    norm = base.model.model.norm
    norm.forward = lambda x: F.rms_norm(x, x.shape[-1:])


@pytest.mark.parametrize("change", [hook, replace, patch])
def test_a_model_that_somebody_changed(base_copy: Base, change: Callable[[Base], None], caplog: Any) -> None:
    change(base_copy)
    refused(base_copy, caplog, "is not the library's own")


def test_a_rotation_that_depends_on_the_batch(base_copy: Base, caplog: Any) -> None:
    base_copy.model.config.rope_parameters["rope_type"] = "dynamic"
    refused(base_copy, caplog, "'dynamic'")


WRONG: dict[str, Callable[[Any], object]] = {
    "scale": lambda e: setattr(e.layers[0], "scale", 0.3),
    "rotation": lambda e: e.turns.mul_(1j),
    "norm": lambda e: setattr(e, "norm", lambda x: x),
    "activation": lambda e: setattr(e.layers[1], "act", torch.relu),
    "window": lambda e: setattr(e.layers[1], "window", 2),
}


@pytest.mark.parametrize("part", WRONG)
def test_a_wrong_engine_is_found_out(tiny_base: Base, part: str) -> None:
    made = Engine(tiny_base, 16)
    made.checked()
    WRONG[part](made)
    if part == "rotation":  # a turn of all positions alike changes nothing that attention sees
        made.turns[3] = 1
    with pytest.raises(Unknown, match="differ"):
        made.checked()
