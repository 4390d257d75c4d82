"""LoRA, IA3 and TinyLoRA against their formulas, written out with dense matrices."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from svf_rl.adapters import ADAPTERS, make_adapter
from svf_rl.alternatives.swapped import SwappedAdapter
from svf_rl.base.load import Base
from svf_rl.errors import BaseError, UserError
from svf_rl.svf.factorize import find_targets, matrix

Make = Callable[..., SwappedAdapter]
Moved = Callable[[SwappedAdapter], SwappedAdapter]
Logits = Callable[[Base], Tensor]


def dense_logits(base: Base, weights: dict[str, Tensor], ids: Tensor, others: dict[str, Tensor] | None = None) -> Tensor:
    """Of the base with some weights [out, in], and other tensors by name, replaced."""
    turned = base.model.config.model_type == "gpt2"
    replaced = {f"{name}.weight": weight.T if turned else weight for name, weight in weights.items()}
    scores: Tensor = torch.func.functional_call(base.model, {**replaced, **(others or {})}, (ids,)).logits
    return scores


@pytest.mark.parametrize(("rank", "alpha"), [(16, 16.0), (1, 4.0)])
def test_lora_adds_a_product(rank: int, alpha: float, base: Base, make: Make, moved: Moved, logits: Logits, ids: Tensor) -> None:
    adapter = moved(make(base, "lora", rank=rank, alpha=alpha))
    found, state = logits(base), adapter.state()
    adapter.uninstall()
    weights = {
        name: matrix(module) + alpha / rank * state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
        for name, module in find_targets(base.model, "attention+mlp").items()
    }
    assert len(state) == 2 * len(weights)
    torch.testing.assert_close(found, dense_logits(base, weights, ids), atol=2e-3, rtol=2e-3)


def test_ia3_scales_outputs_of_attention_and_inputs_of_the_mlp(
    base: Base, make: Make, moved: Moved, logits: Logits, ids: Tensor
) -> None:
    adapter = moved(make(base, "ia3"))
    found, scales = logits(base), {name.removesuffix(".ia3_l"): t.flatten() for name, t in adapter.state().items()}
    adapter.uninstall()
    weights, biases = {}, {}
    for name, scale in scales.items():
        module: Any = base.model.get_submodule(name)
        inner = ".mlp." in name
        weights[name] = matrix(module) * (scale if inner else scale[:, None])
        if not inner and getattr(module, "bias", None) is not None:
            biases[f"{name}.bias"] = module.bias * scale
    endings = {name.rpartition(".")[2] for name in scales}
    assert endings == ({"c_attn", "c_proj"} if base.model.config.model_type == "gpt2" else {"k_proj", "v_proj", "down_proj"})
    torch.testing.assert_close(found, dense_logits(base, weights, ids, biases), atol=2e-3, rtol=2e-3)


def test_ia3_leaves_the_attention_output_of_gpt2_alone(architectures: dict[str, Base], make: Make) -> None:
    assert not [name for name in make(architectures["gpt2"], "ia3").parameters() if ".attn.c_proj" in name]


def test_tinylora_moves_within_the_top_singular_vectors(base: Base, make: Make, moved: Moved, logits: Logits, ids: Tensor) -> None:
    adapter = moved(make(base, "tinylora", rank=2, numbers=5))
    found, numbers = logits(base), adapter.state()
    adapter.uninstall()
    weights = {}
    for i, (name, module) in enumerate(find_targets(base.model, "attention+mlp").items()):
        u, s, vt = torch.linalg.svd(matrix(module).double(), full_matrices=False)
        sign = vt[:2].gather(1, vt[:2].abs().argmax(1, keepdim=True)).sign()[:, 0]
        projections = torch.normal(0.0, 2**-0.5, (5, 2, 2), generator=torch.Generator().manual_seed(i)).double()
        core = (numbers[name].double()[:, None, None] * projections).sum(0)
        half = s[:2].sqrt() * sign
        weights[name] = (matrix(module) + (u[:, :2] * half) @ core @ (half[:, None] * vt[:2])).float()
    assert numbers.keys() == weights.keys()
    torch.testing.assert_close(found, dense_logits(base, weights, ids), atol=2e-3, rtol=2e-3)


def test_tinylora_does_not_depend_on_the_signs_of_a_decomposition(
    tiny_base: Base, make: Make, moved: Moved, logits: Logits, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = moved(make(tiny_base, "tinylora"))
    expected = logits(tiny_base)
    adapter.uninstall()
    original = torch.linalg.svd

    def flipped(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        u, s, vt = original(*args, **kwargs)
        return -u, s, -vt

    monkeypatch.setattr(torch.linalg, "svd", flipped)
    moved(make(tiny_base, "tinylora"))
    assert torch.equal(logits(tiny_base), expected)


MLP = [f"model.layers.{i}.mlp.{leaf}" for i in range(2) for leaf in ("gate_proj", "up_proj", "down_proj")]


@pytest.mark.parametrize("name", ["lora", "tinylora"])
@pytest.mark.parametrize(("targets", "paths"), [("mlp", MLP), (r"layers\.1\..*v_proj", ["model.layers.1.self_attn.v_proj"])])
def test_targets_choose_the_matrices(name: str, targets: str, paths: list[str], tiny_base: Base, make: Make) -> None:
    trained = make(tiny_base, name, targets=targets).parameters()
    assert {path.partition(".lora_")[0] for path in trained} == set(paths)


@pytest.mark.parametrize("name", ["lora", "ia3", "tinylora"])
def test_targets_that_match_nothing_are_refused(name: str, tiny_base: Base) -> None:
    with pytest.raises(BaseError, match="no linear layer"):
        make_adapter(tiny_base, ADAPTERS[name].settings(targets="nowhere"))


@pytest.mark.parametrize(("name", "key"), [("lora", "rank"), ("tinylora", "rank"), ("tinylora", "numbers")])
def test_sizes_below_one_are_refused(name: str, key: str) -> None:
    with pytest.raises(UserError, match=f"adapter.{key} must be at least 1, not 0"):
        ADAPTERS[name].settings(**{key: 0})


@pytest.mark.parametrize("name", ["lora", "ia3", "tinylora"])
def test_without_peft_the_message_says_what_to_install(name: str, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'svf-rl\[peft\]'"):
        make_adapter(tiny_base, ADAPTERS[name].settings())
