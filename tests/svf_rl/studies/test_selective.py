"""The study of selective attention: equal parameters, what the linear form is, and a short run."""

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from svf_rl.attention.adapter import AttentionAdapter
from svf_rl.attention.selective import Form, Linear, SelectiveConfig
from svf_rl.errors import UserError
from svf_rl.files import read_tensors
from svf_rl.progress import Progress
from svf_rl.studies import selective
from svf_rl.studies.reference import Reference
from svf_rl.studies.scratch import Language, Shape, Text, new_model
from svf_rl.studies.selective import TYPES, Cell, Naive, SelectiveStudyConfig, build

SMALL = SelectiveStudyConfig(width=16, layers=2, length=16, rank=4, seeds=2, epochs=1, batches=2, rows=4)


def moved(language: Language) -> Language:
    """Every parameter away from where it starts, the zeros of the patches too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in language.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return language


@pytest.mark.parametrize("width", [16, 64])
def test_all_kinds_have_as_many_parameters(text: Text, width: int) -> None:
    config = dataclasses.replace(SMALL, width=width, rank=width // 2)
    sizes = [build(Cell(kind, rope), config, text).size for kind, rope in itertools.product(TYPES, (True, False))]
    assert max(sizes) - min(sizes) <= 0.01 * max(sizes)


def test_without_rope_the_linear_form_is_standard_attention_and_a_skip(text: Text) -> None:
    """In plain torch: the standard model's heads, plus a map of the layer's input, through the output projection."""
    language = moved(build(Cell("linear", False), SMALL, text))
    llama: Any = language.model
    assert all(patch.key is None for patch in language.patches)
    plain = Reference(Shape(text.vocabulary, 16, 2, 2, llama.config.intermediate_size, 16, rope=False))
    language.adapter.uninstall()
    plain.take(llama)
    language.adapter.install()
    ids = text.train[:3]
    x = plain.embedding(ids)
    for layer, patch in zip(plain.layers, language.patches, strict=True):
        inner = layer.norms[0](x)
        query, key, value = (layer.maps[name](inner).view(3, 17, 2, 8).transpose(1, 2) for name in "qkv")
        heads = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).reshape(3, 17, 16)
        x = x + layer.maps["o"](heads + inner @ (patch.value.up @ patch.value.down).T)
        inner = layer.norms[1](x)
        x = x + layer.maps["down"](F.silu(layer.maps["gate"](inner)) * layer.maps["up"](inner))
    torch.testing.assert_close(language(ids), F.linear(plain.norm(x), plain.embedding.weight), atol=2e-4, rtol=1e-3)


def test_the_form_that_is_timed_as_naive_is_the_same_function(text: Text, shape: Shape) -> None:
    settings, logits = SelectiveConfig(form=Form.linear, rank=4), []
    for kind in (Naive, Linear):
        model = new_model(shape, 0)
        language = moved(Language(model, AttentionAdapter(model, settings, partial(kind, config=settings))))
        logits.append(language(text.train[:2]))
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


def test_a_short_study_says_what_it_found_and_goes_on(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(SMALL, corpus=str(corpus))
    found = selective.run(config, tmp_path, Progress(quiet=True))
    rows = {(row["mha"], row["rope"]): row for row in found["table"]}
    assert len(rows) == 10
    for rope in (True, False):
        assert rows["torch", rope]["test"] == pytest.approx(rows["standard", rope]["test"], abs=1e-4)
    assert all(row["low"] <= row["test"] <= row["high"] and row["steps/s"] > 0 for row in rows.values())
    assert found["naive"]["naive"]["peak"] > found["naive"]["fast"]["peak"]
    assert "torch, RoPE: the same as standard" in " ".join(found["findings"])
    assert (tmp_path / "losses.png").stat().st_size > 5000
    stored, _ = read_tensors(tmp_path / "linear-rope-seed1.safetensors")
    assert "p.patches.0.key.up" in stored
    monkeypatch.setattr(selective, "train", None)  # a second run that trained anything would fail
    assert selective.run(config, tmp_path, Progress(quiet=True))["table"] == found["table"]


def test_without_the_standard_model_there_is_nothing_to_be_less_than(corpus: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, corpus=str(corpus), mha_type="linear", rope="true", seeds=1, naive_rows=0)
    found = selective.run(config, tmp_path, Progress(quiet=True))
    assert (found["table"][0]["less"], found["naive"], len(found["findings"])) == (None, {}, 1)


def test_selective_is_the_linear_form() -> None:
    config = dataclasses.replace(SMALL, mha_type="[standard,selective,linear,torch]")
    assert config.types == ["standard", "linear", "torch"]
    assert dataclasses.replace(SMALL, mha_type="selective").types == ["linear"]


@pytest.mark.parametrize("wrong", [{"mha_type": "[standard,quick]"}, {"rope": "maybe"}, {"seeds": 0}, {"width": 30}])
def test_a_mistake_is_one_line(wrong: dict[str, Any], svf_rl: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="expected|must be at least"):
        dataclasses.replace(SMALL, **wrong)
    words = [f"selective.{key}={value}" for key, value in wrong.items()]
    assert svf_rl("study", "name=selective", *words).mistake.startswith(("expected", "selective.seeds must be at least 1"))
