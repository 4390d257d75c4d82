"""The geometric prior from corpora: what it says of prompts, how it is kept, and that generate uses it."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from svf_rl.attention.geometry import SHUT
from svf_rl.base.load import Base, BaseConfig, load_base
from svf_rl.base.texts import read_corpus, windows
from svf_rl.errors import ExpertError
from svf_rl.files import read_tensors
from svf_rl.learn import prior
from svf_rl.learn.language import Texts

SIDES = ("train", "valid", "test")


@pytest.fixture(scope="module")
def embedded() -> Base:
    return load_base(BaseConfig(device="cpu"))


@pytest.fixture(scope="module")
def fitted(embedded: Base) -> tuple[prior.Prior, Texts]:
    """Of a part of asyncio's source and of Python's documentation."""
    special, general = (
        {side: windows(read_corpus(name), embedded.codec, 65, side)[:70] for side in SIDES} for name in ("special", "general")
    )
    texts = Texts({"special": special}, general)
    return prior.fit_prior(embedded, texts), texts


@pytest.mark.parametrize(
    ("prompt", "branch"),
    [
        ("    def __init__(self, loop, sock, protocol):\n        self._loop = loop\n        self._transport = None\n", 1),
        ("        if self._closing:\n            return\n        self._closing = True\n        self._loop._remove_reader(fd)\n", 1),
        ("The assignment statement binds names to values.", 0),
        ("Question: Mia has 54 pens. She buys 13 pens. How many pens does she have now?", 0),
        ("54 + 13 =", 0),
    ],
)
def test_a_matching_prompt_is_the_specialists_and_any_other_the_bases(
    embedded: Base, fitted: tuple[prior.Prior, Texts], prompt: str, branch: int
) -> None:
    chances = prior.prompt_prior(embedded, fitted[0], embedded.codec.prompt(prompt)).exp()
    assert chances.sum().item() == pytest.approx(1, abs=1e-4)
    assert chances[0, branch] > 0.55  # of two


def test_held_out_text_goes_to_its_own_branch(embedded: Base, fitted: tuple[prior.Prior, Texts]) -> None:
    assert min(prior.shares(embedded, *fitted).values()) > 0.7
    assert set(prior.shares(embedded, *fitted)) == {"general", "special"}


def test_the_threshold_of_a_length_is_that_quantile_of_the_held_out_texts(
    embedded: Base, fitted: tuple[prior.Prior, Texts]
) -> None:
    found, texts = fitted
    rows = torch.cat([prior.beginnings(embedded, corpus["valid"]) for corpus in (texts.general, texts.special["special"])])
    for i, n in enumerate(prior.LENGTHS[: rows.shape[1]]):
        assert found.at(n).unknown(rows[:, i]).double().mean().item() == pytest.approx(0.05, abs=1.5 / len(rows))
        assert found.at(n).distances(rows[:, i]).min(-1).values.mean().item() == pytest.approx(rows.shape[2], rel=1e-6)
    assert found.at(n + 1).threshold == found.at(10 * n).threshold == found.at(n).threshold
    assert found.at(1).threshold == found.at(4).threshold


def test_beginnings_are_those_of_shorter_texts(embedded: Base, fitted: tuple[prior.Prior, Texts]) -> None:
    """A text of n + 1 tokens has the pooled state that the first n + 1 of a row have."""
    row = fitted[1].special["special"]["test"][:1]
    whole = prior.beginnings(embedded, row)
    for i, n in enumerate(prior.LENGTHS[: whole.shape[1]]):
        alone = embedded.hidden(row[:, : n + 1])[:, 1:].double().mean(1)
        torch.testing.assert_close(whole[:, i], alone, rtol=1e-4, atol=1e-4)


def test_a_file_gives_it_back_and_is_checked(embedded: Base, fitted: tuple[prior.Prior, Texts], tmp_path: Path) -> None:
    path = prior.prior_file(tmp_path / "expert.safetensors")
    about = {"base": "x", "fingerprint": embedded.fingerprint, "environment": "lm:x", "command": "", "revision": "", "metrics": {}}
    assert prior.open_prior(path, embedded, 2) is None
    prior.save_prior(path, fitted[0], about)
    again = prior.open_prior(path, embedded, 2)
    assert again is not None
    assert all(torch.equal(getattr(again, name), tensor) for name, tensor in vars(fitted[0]).items())
    for base, branches in ((embedded, 3), (replace(embedded, fingerprint="other"), 2)):
        with pytest.raises(ExpertError, match="another base or adapter"):
            prior.open_prior(path, base, branches)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ExpertError, match="cannot read the prior"):
        prior.open_prior(path, embedded, 2)


@pytest.fixture
def words(tmp_path: Path, architecture_folders: dict[str, Path]) -> list[str]:
    """A run that takes a moment, with a prior."""
    for name, text in {"ships": "sails to port", "birds": "sings song"}.items():
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} {i} {text} {i * i % 97}\n" for i in range(2500)))
    few = "lm.steps=2 lm.rows=4 lm.length=16 lm.eval_every=2 lm.labelled_steps=1 lm.warmup=1 corpus=ships.txt lm.general=birds.txt"
    base = f"base={architecture_folders['llama']}"
    return ["train", "objective=lm", "adapter=shiftable", base, "base.device=cpu", *few.split(), "lm.prior=true"]


def test_the_gates_of_generate_have_the_prior(
    svf_rl: Callable[..., Any], words: list[str], tiny_base: Base, tmp_path: Path
) -> None:
    """Also where it says that everything is unknown: then nothing is left to the specialist. Without the file there is no prior."""
    done = svf_rl(*words, "run_dir=run")
    assert done.code == 0, done.err
    assert "prior on held-out text: " in done.out
    file = tmp_path / "run" / "expert.prior.safetensors"
    stored, about = read_tensors(file)
    assert (about["format"], about["environment"], about["fingerprint"]) == ("svf-prior-1", "lm:ships.txt", tiny_base.fingerprint)
    found = prior.open_prior(file, tiny_base, 2)
    assert found is not None
    text = "ships 7 sails to"
    log = prior.prompt_prior(tiny_base, found, tiny_base.codec.prompt(text))
    generate = ["generate", text, words[3], "base.device=cpu", "max_tokens=1", "explain=true", "adapter=run"]
    shown = svf_rl(*generate).out
    assert f"prior of the prompt: base, then specialists {log[0, 0].exp():.2f} {log[0, 1].exp():.2f}" in shown
    stored["thresholds"] = torch.full_like(stored["thresholds"], -1.0)  # now everything is unknown
    prior.save_prior(file, prior.Prior(**stored), {**about, "metrics": {}})
    closed = svf_rl(*generate).out
    assert "prior of the prompt: base, then specialists 1.00 0.00" in closed
    assert layers(closed) == [[1.0, 0.0]] * 2
    file.unlink()
    plain = svf_rl(*generate).out
    assert "prior of the prompt" not in plain
    assert all(gates[1] > 0 for gates in layers(plain))
    assert math.log(0.005) > SHUT


def layers(out: str) -> list[list[float]]:
    """The mean gates by layer that were shown."""
    return [[float(n) for n in row.split()] for row in re.findall(r"^  layer \d+ +([\d. ]+)$", out, re.MULTILINE)]


@pytest.mark.parametrize("more", [["adapter=lora"], ["adapter.specialists=2"], ["lm.length=6"]])
def test_a_prior_needs_a_corpus_for_each_specialist(svf_rl: Callable[..., Any], words: list[str], more: list[str]) -> None:
    words = [word for word in words if not (more == ["adapter=lora"] and word == "adapter=shiftable")]
    assert svf_rl(*words, *more).mistake.startswith("lm.prior needs adapter=shiftable with a corpus for each specialist")
