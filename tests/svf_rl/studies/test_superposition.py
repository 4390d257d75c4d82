"""Skip trigrams, the toy's heads, and the analysis of which head says what."""

import itertools
import math
from pathlib import Path

import pytest
import torch

from svf_rl.files import read_tensors
from svf_rl.progress import Progress
from svf_rl.studies import superposition, trigrams
from svf_rl.studies.heads import Heads, Places, contribution, places
from svf_rl.studies.solo import Examples, _model, divergence, examples, measures, solo_heads
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
    rest = (ids != 2).all(1)
    assert {"a trigram is missing or rare", "free tokens are not uniform"} <= {*trigrams.problems(ids[rest], forced[rest], 3, 1)}
    broken = ids.clone()
    row, column = forced.nonzero()[0].tolist()
    broken[row, column + 1] = 0
    assert "a B is followed by another token than its C" in trigrams.problems(broken, forced, 3, 100)
    assert trigrams.problems(torch.where(ids == 7, 4, ids), forced, 3, 1000) == ["free tokens are not uniform"]


@pytest.mark.parametrize("short", [trigrams.LENGTH, 4, 3])
def test_sequences_too_short_for_their_cs_are_found(short: int) -> None:
    """In three tokens no A B has a place for its C; in four, fewer than half; in eleven, most. Counted as a reader would."""
    ids, forced = drawn(20000)
    ids, forced = ids[:, :short], forced[:, :short].clone()
    forced[:, -1] = False
    kept, cut = [0] * 8, [0] * 8
    for row in ids.tolist():
        is_open = False
        for i, token in enumerate(row):
            closes = is_open and token in (1, 2, 3)
            kept[token] += closes and i + 1 < short
            cut[token] += closes and i + 1 == short
            is_open = token == 0 or (is_open and not closes)
    assert torch.bincount(trigrams.cut_off(ids, forced, 3), minlength=8).tolist() == cut
    wrong = max(cut) > 0.5 * min(a + b for a, b in zip(kept[1:4], cut[1:4], strict=True))
    assert wrong == (short < trigrams.LENGTH)
    assert ("too often there is no place left for a C" in trigrams.problems(ids, forced, 3, 0)) == wrong


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


class Said(Heads):
    """A model of which it is given what its heads say."""

    def __init__(self, said: torch.Tensor) -> None:
        super().__init__(1, 3, 8, False, 0)
        self.said = said

    def per_head(self, at: Places) -> torch.Tensor:
        return self.said[None]


def test_a_trigram_that_is_not_learnt_is_not_distributed() -> None:
    """Trigram 3 is shared; trigram 2 is said, softly, in 98 % of its examples and not at all in the others."""
    found, said = by_hand(shared=True)
    said = 2 * said
    assert _model(Said(said), found)["distributed"] == [3]
    seconds = (found.forced & (found.at.tokens == 2)).nonzero()[:, 0]
    wrong = len(seconds) // 50
    said[seconds[:wrong]] = 0.0
    told = _model(Said(said), found)
    assert (told["not_learnt"], told["distributed"]) == ([2], [3])
    assert told["accuracy"] == pytest.approx(1 - wrong / int(found.forced.sum()))
    assert _model(Said(0 * said), found)["not_learnt"] == [1, 2, 3]
    assert _model(Said(0 * said), found)["distributed"] == []


def test_agreement_of_next_tokens_is_that_of_distributions() -> None:
    """KL place by place from probabilities written out, 0 for the same model; nats of the Cs for a model that says nothing."""
    found, said = by_hand(shared=False)
    token = torch.eye(8).double()[found.at.tokens]
    first, second = (torch.exp(x) / torch.exp(x).sum(-1, keepdim=True) for x in (token + said.sum(1), token))
    truth = (first * (first / second).log()).sum(-1).mean()
    assert divergence(said.sum(1), torch.zeros(len(said), 8).double(), found) == pytest.approx(float(truth))
    assert divergence(said.sum(1), said.sum(1), found) == pytest.approx(0, abs=1e-12)
    assert _model(Said(0 * said), found)["nats"] == pytest.approx(math.log(7 + math.e))  # the token itself is e times as likely


def test_every_target_has_a_verdict() -> None:
    good = {"heads": 2, "seed": 0, "unlearnt_after": 0, "after": 0, "R2": 0.98, "each_after": 1.2, "gate": 0.5}
    assert [line.split(": ")[1] for line in superposition.verdicts([good])] == ["met in 1 of 1."] * 5
    bad = {"heads": 3, "seed": 4, "unlearnt_after": 1, "after": 2, "R2": 0.979, "each_after": 2.04, "gate": 0.002}
    lines = superposition.verdicts([good, bad])
    assert lines[2] == "R2 of at least 0.98: met in 1 of 2, missed by 3heads-4trigrams-seed4 (0.979)."
    figures = [f"seed4 ({figure})." for figure in ("1", "2", "0.979", "2.04", "0.002")]
    assert all(line.endswith(figure) for line, figure in zip(lines, figures, strict=True))


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
    found = superposition.run(config, tmp_path, Progress(quiet=True))
    (row,) = found["table"]
    assert row["unlearnt"] > 0 == row["distributed"]  # nothing is learnt in two steps
    assert "R2 of at least 0.98: met in 0 of 1, missed by 2heads-3trigrams-seed0" in found["findings"][2]
    name = "2heads-3trigrams-seed0"
    tensors, _ = read_tensors(tmp_path / f"{name}-gated.safetensors")
    assert tensors["out"].shape == (1, 4, 8)
    models = {kind: Heads(1, heads, 8, kind == "gated", 9) for kind, heads in (("base", 2), ("gated", 4))}
    for kind, model in models.items():
        model.load_state_dict(read_tensors(tmp_path / f"{name}-{kind}.safetensors")[0])
    again = measures(models["base"], models["gated"], examples(3, 4000, 10_000))
    assert again["r2"] == pytest.approx(row["R2"])
    assert again["base"]["nats"] == pytest.approx(row["nats"])
    assert {path.name for path in tmp_path.glob("*.png")} == {f"{name}.png", "seeds.png"}
    monkeypatch.setattr(superposition, "train_base", None)  # a second run that trained anything would fail
    assert superposition.run(config, tmp_path, Progress(quiet=True))["table"] == [row]


@pytest.mark.slow
def test_superposition_is_learnt_and_undone(tmp_path: Path) -> None:
    """The smallest published setting from end to end: a trigram is distributed in the plain heads, none in the gated ones."""
    found = superposition.run(SuperpositionConfig(heads="[2]", seeds=1, restarts=4, steps=2000), tmp_path, Progress(quiet=True))
    (row,) = found["table"]
    assert row["distributed"] > 0
    assert all(enough(row[column]) for column, (_, enough) in superposition.TARGETS.items())
    assert row["KL"] < 0.02
    assert row["accuracy"] > 0.99 < row["gated"]
