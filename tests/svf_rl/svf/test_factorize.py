"""Factors rebuild the weights they came from; the cache gives the same ones back or none; what cannot be adapted is named."""

import copy
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from svf_rl.base.load import Base
from svf_rl.errors import BaseError
from svf_rl.progress import Progress
from svf_rl.svf.factorize import factorize, find_targets, truncation_error
from svf_rl.types import Factors

SPLIT = (
    "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj".split(),
    "mlp.gate_proj mlp.up_proj mlp.down_proj".split(),
)
FUSED = ("self_attn.qkv_proj self_attn.o_proj".split(), "mlp.gate_up_proj mlp.down_proj".split())
GPT2 = ("attn.c_attn attn.c_proj".split(), "mlp.c_fc mlp.c_proj".split())


def expected(base: Base, part: str) -> set[str]:
    """The names that "attention" or "mlp" stands for, written out."""
    kind = base.model.config.model_type
    attention, mlp = {"gpt2": GPT2, "phi3": FUSED}.get(kind, SPLIT)
    stem = "transformer.h" if kind == "gpt2" else "model.layers"
    return {f"{stem}.{i}.{name}" for i in range(2) for name in (attention if part == "attention" else mlp)}


def weight_of(base: Base, name: str) -> Tensor:
    """W as [out, in]; only GPT-2 stores it the other way round."""
    weight: Tensor = base.model.get_submodule(name).weight
    return weight.T if base.model.config.model_type == "gpt2" else weight


def assert_same(a: dict[str, Factors], b: dict[str, Factors]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True))


@pytest.fixture
def no_svd(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("factors were computed although they are in the cache")

    monkeypatch.setattr(torch.linalg, "svd", refuse)


# ---- which matrices


def test_targets_are_attention_and_mlp(base: Base) -> None:
    assert set(find_targets(base.model, "attention")) == expected(base, "attention")
    assert set(find_targets(base.model, "mlp")) == expected(base, "mlp")
    assert set(find_targets(base.model, "attention+mlp")) == expected(base, "attention") | expected(base, "mlp")


def test_targets_by_expression(tiny_base: Base) -> None:
    assert set(find_targets(tiny_base.model, r"layers\.1\..*[qk]_proj")) == {
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.k_proj",
    }
    assert set(find_targets(tiny_base.model, "lm_head")) == {"lm_head"}


@pytest.mark.parametrize("targets", ["nothing_like_it", "embed_tokens", "("])
def test_targets_that_match_no_linear_layer(tiny_base: Base, targets: str) -> None:
    with pytest.raises(BaseError, match=f"targets='{re.escape(targets)}'") as caught:
        find_targets(tiny_base.model, targets)
    assert "attention+mlp" in str(caught.value)
    assert "\n" not in str(caught.value)


class Linear4bit(nn.Module):
    """Stands in for a linear layer, with packed weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)


class ScaledLinear(nn.Linear):
    """A linear layer by inheritance, whose weight is not all it computes with."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class QuantLinear(nn.Module):
    """No weight at all, only packed ones."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(8, dtype=torch.int32))


def float8_linear() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Linear4bit(), r"\(Linear4bit\) is quantised"),
        (QuantLinear(), r"\(QuantLinear\) is quantised"),
        (ScaledLinear(4, 4), r"\(ScaledLinear\) is quantised"),
        (float8_linear(), r"\(Linear\) is quantised"),
        (nn.Linear(4, 4, device="meta"), "meta device"),
    ],
)
def test_unsuited_layers_are_refused_by_name(layer: nn.Module, reason: str) -> None:
    model = nn.ModuleDict({"self_attn": nn.ModuleDict({"k_proj": nn.Linear(4, 4), "q_proj": layer})})
    with pytest.raises(BaseError, match=rf"^self_attn\.q_proj .*{reason}.*; load the base") as caught:
        find_targets(model, "attention")
    assert "\n" not in str(caught.value)


def test_a_rotary_embedding_is_no_matrix() -> None:
    class LinearScalingRotaryEmbedding(nn.Module):
        pass

    model = nn.ModuleDict({"self_attn": nn.ModuleDict({"rotary": LinearScalingRotaryEmbedding(), "q_proj": nn.Linear(4, 4)})})
    assert list(find_targets(model, "attention")) == ["self_attn.q_proj"]


# ---- the factors


def test_factors_rebuild_the_weights(base: Base) -> None:
    for name, (u, s, vt) in factorize(base, "attention+mlp").items():
        weight = weight_of(base, name).double()
        rank = min(weight.shape)
        assert (u.dtype, s.dtype, vt.dtype) == (torch.float32,) * 3
        assert (u.shape, s.shape, vt.shape) == ((weight.shape[0], rank), (rank,), (rank, weight.shape[1]))
        torch.testing.assert_close(u.double() @ torch.diag(s.double()) @ vt.double(), weight, atol=2e-6, rtol=0)
        torch.testing.assert_close(s.double(), torch.linalg.svdvals(weight), atol=2e-6, rtol=1e-5)
        for square in (u.T @ u, vt @ vt.T):
            torch.testing.assert_close(square, torch.eye(rank), atol=1e-5, rtol=0)


def test_truncation_keeps_the_largest(tiny_base: Base, capsys: pytest.CaptureFixture[str]) -> None:
    full, cut = factorize(tiny_base, "mlp"), factorize(tiny_base, "mlp", rank=5, progress=Progress())
    report = capsys.readouterr().err
    for name, factors in cut.items():
        weight = weight_of(tiny_base, name)
        assert factors.U.shape == (weight.shape[0], 5)
        assert factors.Vt.shape == (5, weight.shape[1])
        torch.testing.assert_close(factors.s, full[name].s[:5])
        dropped = torch.linalg.svdvals(weight.double())[5:]
        error = float(dropped.square().sum().sqrt() / weight.double().square().sum().sqrt())
        assert truncation_error(weight, factors) == pytest.approx(error, rel=1e-5)
        assert 0.3 < error < 1
        assert f"{name}: rank 5, error {error:.2%}" in report


def test_a_rank_above_the_full_one_keeps_all(tiny_base: Base, tmp_path: Path) -> None:
    factors = factorize(tiny_base, "attention", rank=1000, cache=tmp_path)
    assert_same(factors, factorize(tiny_base, "attention"))


@pytest.mark.parametrize("rank", [0, -3])
def test_bad_ranks(tiny_base: Base, rank: int) -> None:
    with pytest.raises(BaseError, match=rf"adapter\.rank must be a positive number.*not {rank}"):
        factorize(tiny_base, "mlp", rank)


def test_weights_that_are_not_finite(tiny_base: Base, tmp_path: Path) -> None:
    model = copy.deepcopy(tiny_base.model)
    model.model.layers[1].mlp.up_proj.weight[3, 2] = torch.nan
    with pytest.raises(BaseError, match=r"model\.layers\.1\.mlp\.up_proj has values that are not finite"):
        factorize(replace(tiny_base, model=model), "mlp", cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_weights_are_factored_in_float32(tiny_base: Base, tmp_path: Path) -> None:
    model = copy.deepcopy(tiny_base.model).bfloat16()
    factors = factorize(replace(tiny_base, model=model, fingerprint="bf16"), "mlp", cache=tmp_path)
    for name, (u, s, vt) in factors.items():
        assert u.dtype == torch.float32
        torch.testing.assert_close((u * s) @ vt, model.get_submodule(name).weight.float(), atol=5e-6, rtol=0)


# ---- the cache


@pytest.mark.usefixtures("no_svd")
def test_a_second_call_reads_the_cache(base: Base, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="computed"):  # the guard works
        factorize(base, "attention", cache=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.linalg, "svd", torch._C._linalg.linalg_svd)
        first = factorize(base, "attention", cache=tmp_path)
    assert_same(first, factorize(base, "attention", cache=tmp_path))


def damaged(content: bytes) -> dict[str, bytes]:
    flipped = bytearray(content)
    flipped[-1] ^= 1  # a value, which safetensors itself would accept
    return {
        "empty": b"",
        "half": content[: len(content) // 2],
        "one byte short": content[:-1],
        "noise": os.urandom(4096),
        "one bit of a value": bytes(flipped),
    }


@pytest.mark.parametrize("damage", ["empty", "half", "one byte short", "noise", "one bit of a value"])
def test_a_damaged_cache_is_made_anew(tiny_base: Base, tmp_path: Path, damage: str) -> None:
    right = factorize(tiny_base, "mlp", cache=tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(damaged(content)[damage])
    assert_same(right, factorize(tiny_base, "mlp", cache=tmp_path))
    assert path.read_bytes() == content


def test_an_interrupted_write_leaves_nothing(tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        factorize(tiny_base, "mlp", cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_cache_costs_only_time(tiny_base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("not a folder")
    factors = factorize(tiny_base, "mlp", progress=Progress(), cache=tmp_path / "file" / "cache")
    assert_same(factors, factorize(tiny_base, "mlp"))
    assert "not kept for the next run" in capsys.readouterr().err


def test_the_key_tells_base_targets_and_rank(tiny_base: Base, tmp_path: Path) -> None:
    other = replace(tiny_base, fingerprint="0" * 32)
    for base, targets, rank in [
        (tiny_base, "mlp", None),
        (tiny_base, "attention", None),
        (tiny_base, "mlp", 3),
        (tiny_base, "mlp", 4),
        (other, "mlp", None),
    ]:
        before = set(tmp_path.iterdir())
        factorize(base, targets, rank, cache=tmp_path)
        assert len(set(tmp_path.iterdir()) - before) == 1
    factorize(tiny_base, "mlp", 3, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_the_cache_folder_is_the_users(tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SVF_RL_CACHE", str(tmp_path / "own"))
    factorize(tiny_base, "mlp")
    monkeypatch.delenv("SVF_RL_CACHE")
    factorize(tiny_base, "mlp")
    monkeypatch.delenv("XDG_CACHE_HOME")
    factorize(tiny_base, "mlp")
    folders = {p.parent.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.safetensors")}
    assert folders == {"own/factors", "xdg/svf-rl/factors", "home/.cache/svf-rl/factors"}
