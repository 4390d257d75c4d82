"""The study of soft masks: histograms, saturated gates, writing with a cache, and a short run."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from svf_rl.errors import UserError
from svf_rl.progress import Progress
from svf_rl.studies import soft_mask
from svf_rl.studies.scratch import Language, Text
from svf_rl.studies.soft_mask import FORMS, SoftMaskStudyConfig, build, generate, published_start, saturated

SMALL = SoftMaskStudyConfig(
    forms="[none,bilinear,original,forget,selective]",
    seeds=1,
    tokenizer="characters",
    width=16,
    layers=2,
    heads=2,
    feed_forward=24,
    context=16,
    rank=2,
    batches=2,
    rows=4,
    prompt="a",
    tokens=20,
)


def moved(form: str, text: Text) -> Language:
    language = build(form, 0, SMALL, text)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in language.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    language.constrain()
    return language


def test_saturated_gates_are_those_of_earlier_tokens(text: Text) -> None:
    """A fading mask by hand: exp(-gamma * softplus(...) * distance) for a gate that is the same for all tokens."""
    language, ids = build("forget", 0, SMALL, text), text.train[:2, :-1]
    assert saturated(language, ids) == 1.0  # all are 1
    assert saturated(build("bilinear", 0, SMALL, text), ids) == saturated(build("original", 0, SMALL, text), ids) == 0.0
    assert saturated(build("none", 0, SMALL, text), ids) is None
    with torch.no_grad():
        for patch in language.patches:
            patch.gate.zero_()
            patch.gate_bias.zero_()
            patch.gamma.fill_(1.0)  # each token halves what came before it: below 0.01 from a distance of 7
    pairs = [(i, j) for i in range(16) for j in range(i)]
    assert saturated(language, ids) == pytest.approx(sum(i - j >= 7 for i, j in pairs) / len(pairs))


def test_the_published_mask_is_born_saturated() -> None:
    assert published_start(128, 64, 500) == pytest.approx(0.69, abs=0.03)


@pytest.mark.parametrize("form", FORMS)
def test_writing_with_a_cache_is_writing_without_one(form: str, text: Text) -> None:
    language, generator, ids = moved(form, text), torch.Generator().manual_seed(5), [1, 2]
    for _ in range(14 if form == "original" else 24):
        chances = F.softmax(language(torch.tensor([ids]))[0, -1].detach(), -1)
        ids += torch.multinomial(chances, 1, generator=generator).tolist()
    assert generate(language, [1, 2], len(ids) - 2, seed=5) == ids[2:]
    if form == "original":
        with pytest.raises(ValueError, match="knows 16 positions"):
            generate(language, [1, 2], 24)


def test_a_short_study_leaves_histograms_text_and_models_and_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(SMALL, corpus=str(corpus))
    found = soft_mask.run(config, tmp_path, Progress(quiet=True))
    rows = {row["form"]: row for row in found["table"]}
    assert list(rows) == ["none", "bilinear", "original", "forget", "selective"]
    assert rows["none"]["saturated"] is None
    assert all(row["low"] <= row["test"] <= row["high"] for row in rows.values())
    written = found["written"]
    assert (len(written["forget"]["within"]), len(written["forget"]["tokens"])) == (16, 21)
    assert written["original"]["tokens"].startswith("refused: form=original knows 16 positions")
    assert "original cannot write beyond its context." in found["findings"]
    with (tmp_path / "bilinear-seed0-losses.csv").open() as file:
        assert sum(int(row["batches"]) for row in csv.DictReader(file)) == 4
    assert len(list(tmp_path.glob("*-losses.png"))) == 5
    monkeypatch.setattr(soft_mask, "train", None)  # a second run that trained anything would fail
    again = soft_mask.run(config, tmp_path, Progress(quiet=True))
    assert (again["table"], again["written"]) == (found["table"], written)
    other = soft_mask.run(dataclasses.replace(config, prompt="bad", tokens=12), tmp_path, Progress(quiet=True))
    assert other["table"] == found["table"]
    assert all(text["tokens"].startswith("bad") and len(text["tokens"]) == 15 for text in other["written"].values())
    for setting in ("temperature", "anneal_steps", "openness"):
        with pytest.raises(UserError, match=f"made with another {setting};"):
            soft_mask.run(dataclasses.replace(config, **{setting: 3}), tmp_path, Progress(quiet=True))


def test_the_settings_of_a_mask_are_settings_of_the_study(text: Text) -> None:
    config = dataclasses.replace(SMALL, temperature=3.0, anneal_steps=4, openness=0.5)
    language = build("bilinear", 0, config, text)
    language.constrain()
    assert [float(patch.temperature) for patch in language.patches] == [1.5, 1.5]
    language(text.train[:2])
    assert float(language.adapter.penalty().detach()) == pytest.approx(0.5)  # every M is 1 at the start


@pytest.mark.parametrize(
    "wrong", [{"forms": "[none,blurred]"}, {"epochs": 0}, {"heads": 3}, {"temperature": 0.5}, {"anneal_steps": 0}]
)
def test_a_mistake_is_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="expected|at least"):
        dataclasses.replace(SMALL, **wrong)
