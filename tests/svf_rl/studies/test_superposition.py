"""Skip trigrams, the toy's heads, and the analysis of which head says what."""

import itertools
from pathlib import Path

import pytest
import torch

from svf_rl.files import read_tensors
from svf_rl.progress import Progress
from svf_rl.studies import superposition, trigrams
from svf_rl.studies.heads import Heads, contribution, places
from svf_rl.studies.solo import Examples, solo_heads
from svf_rl.studies.superposition import SuperpositionConfig


def drawn(rows: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    return trigrams.draw(3, rows, torch.Generator().manual_seed(0))


def test_tokens_are_forced_as_a_reader_would() -> None:
    """Row by row: after an A that is open, the first B is followed by its C, and no A comes in between."""
    ids, forced = drawn(300)
    for row, marks in zip(ids.tolist(), forced.tolist(), strict=True):
        is_open = False
        for i, token in enumerate(row[1:], 1):
            if row[i - 1] in (1, 2, 3) and is_open and marks[i - 1]:
                assert token == row[i - 1] + 3
                is_open = False
                continue
            assert not (is_open and token == 0)
            is_open = is_open or token == 0
            assert marks[i] == (is_open and token in (1, 2, 3) and i < trigrams.LENGTH - 1)


def test_the_data_are_valid_and_faults_are_found() -> None:
    ids, forced = drawn(20000)
    assert trigrams.problems(ids, forced, 3, 1000) == []
    assert trigrams.problems(ids, forced, 3, 10**6) == ["a trigram is missing or rare"]
    broken = ids.clone()
    row, column = forced.nonzero()[0].tolist()
    broken[row, column + 1] = 0
    assert "a B is followed by another token than its C" in trigrams.problems(broken, forced, 3, 100)


def naive(model: Heads, ids: torch.Tensor) -> torch.Tensor:
    """Pair by pair and head by head, as the formula reads: [rows, time, heads, V]."""
    out = torch.zeros(*ids.shape, *model.out.shape[1:]).double()
    query, key, value = (model.maps + model.biases[..., None])[0]
    for row, i, h in itertools.product(range(len(ids)), range(ids.shape[1]), range(model.out.shape[1])):
        before = ids[row, : i + 1]
        weights = (query[h, ids[row, i]] * key[h, before]).softmax(0)
        if model.gates is not None:
            weights = weights * (model.gates[0, 0, h, ids[row, i]] * model.gates[0, 1, h, before]).clamp(0, 1)
        out[row, i, h] = (weights * value[h, before]).sum() * model.out[0, h]
    return out


@pytest.mark.parametrize("gated", [False, True])
def test_tables_are_attention_pair_by_pair(gated: bool) -> None:
    ids, model = drawn(4)[0], Heads(1, 2, 8, gated, 3)
    torch.testing.assert_close(model.per_head(places(ids, 8))[0].unflatten(0, ids.shape), naive(model, ids))
    torch.testing.assert_close(model(places(ids, 8))[0].unflatten(0, ids.shape), naive(model, ids).sum(2))


def test_a_model_by_itself_says_the_same() -> None:
    at, model = places(drawn(4)[0], 8), Heads(3, 2, 8, True, 3)
    torch.testing.assert_close(model.only(1)(at)[0], model(at)[1], rtol=0, atol=1e-6)  # products of fewer heads round differently


def by_hand(shared: bool) -> tuple[Examples, torch.Tensor]:
    """Head b - 1 says C_b at B_b; where trigram 3 is shared, heads 0 and 1 each say half of it, and more of something else."""
    ids, forced = drawn(500)
    found = Examples(places(ids, 8), forced.flatten(), 3)
    said = torch.zeros(ids.numel(), 3, 8).double()
    for b in (1, 2, 3):
        said[found.at.tokens == b, b - 1, 3 + b] = 1.0
    if shared:
        said[found.at.tokens == 3] = torch.tensor([[0.0] * 4 + [3, 0, 2, 0], [0.0] * 4 + [0, 3, 2, 0], [0.0] * 8]).double()
    return found, said


def test_heads_that_speak_alone_and_trigrams_that_none_does() -> None:
    found, said = by_hand(shared=False)
    assert solo_heads(said, found) == {1: [0], 2: [1], 3: [2]}
    found, said = by_hand(shared=True)
    assert said[found.forced].sum(1).argmax(-1).eq(found.at.tokens[found.forced] + 3).all()  # together they are right
    assert solo_heads(said, found) == {1: [0], 2: [1], 3: []}


def test_one_head_costs_less_than_two_that_share() -> None:
    """The penalty of a pair said by one head of strength 2, and by two of strength 1: 2 against 2 ** (1 / 0.6)."""
    at = places(torch.tensor([[7]]), 8)
    costs = []
    for strengths in ([2.0, 0.0], [1.0, 1.0]):
        model = Heads(1, 2, 8, False, 0)
        with torch.no_grad():
            model.maps[0, 2] = 1.0
            model.out.zero_()[0, :, 0] = torch.tensor(strengths).double()
        costs.append(float(contribution(model, at).detach()))
    assert costs == pytest.approx([2.0, 2 ** (1 / 0.6)], rel=1e-3)


def test_a_short_study_leaves_models_and_figures_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SuperpositionConfig(heads="[2]", seeds=1, base_steps=2, steps=2, restarts=2, rows=8, copies=2)
    (row,) = superposition.run(config, tmp_path, Progress(quiet=True))["table"]
    name = "2heads-3trigrams-seed0"
    tensors, _ = read_tensors(tmp_path / f"{name}-gated.safetensors")
    assert tensors["out"].shape == (1, 4, 8)
    assert {path.name for path in tmp_path.glob("*.png")} == {f"{name}.png", "seeds.png"}
    monkeypatch.setattr(superposition, "train_base", None)  # a second run that trained anything would fail
    assert superposition.run(config, tmp_path, Progress(quiet=True))["table"] == [row]
