"""Models from scratch: their text, their positions, and what they are judged by."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from svf_rl.attention.soft_mask import SoftMaskConfig, make_soft_mask
from svf_rl.evaluate.stats import Interval
from svf_rl.progress import Progress
from svf_rl.studies.scratch import Language, Shape, Text, as_base, backward, judge, new_model, peak, read_text, verdict


def test_a_corpus_becomes_rows_and_a_vocabulary(text: Text, corpus: Path) -> None:
    assert text.vocabulary == len(set(corpus.read_text()))
    assert {rows.shape[1] for rows in (text.train, text.valid, text.test)} == {17}
    embedded = read_text(str(corpus), "embedded", 16, print)
    assert embedded.vocabulary == 1 + max(*embedded.codec.stop_ids, embedded.codec.pad_id)


def test_without_rope_one_layer_does_not_see_the_order_of_what_came_before(shape: Shape) -> None:
    ids = torch.tensor([[1, 2, 3, 4, 5], [4, 2, 1, 3, 5]])
    for rope in (False, True):
        one_layer = dataclasses.replace(shape, layers=1, rope=rope)
        model = new_model(one_layer, 0)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(10 if p.ndim > 1 else 1)  # so that an order that is seen changes something
            last = model(ids).logits[:, -1]
        assert torch.allclose(last[0], last[1], atol=1e-5) is not rope


def test_a_model_is_judged_token_by_token(shape: Shape, text: Text) -> None:
    language, rows = Language(new_model(shape, 0)), text.test[:40]
    found = judge(language, rows)
    with torch.no_grad():
        chances = language(rows[:, :-1]).softmax(-1)
    nats = [-math.log(chances[i, j, rows[i, j + 1]]) for i in range(len(rows)) for j in range(16)]
    assert found["nats"] == pytest.approx(sum(nats) / len(nats), abs=1e-5)
    assert found["low"] < found["nats"] < found["high"]
    assert found["accuracy"] == pytest.approx(float((chances.argmax(-1) == rows[:, 1:]).double().mean()))


def test_peak_counts_what_is_held_at_once_and_leaves_no_gradient(shape: Shape, text: Text) -> None:
    language = Language(new_model(shape, 0))
    few, many = peak(language, text.train[:8]), peak(language, text.train[:32])
    assert 32 * 16 * text.vocabulary * 4 / 2**20 < many
    assert 2 < many / few < 4.5
    assert all(p.grad is None for p in language.parameters())


def test_the_loss_is_that_of_the_next_token(shape: Shape, text: Text) -> None:
    language = Language(new_model(shape, 0))
    ids = text.train[:3]
    expected = F.cross_entropy(language(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert backward(language, ids) == pytest.approx(float(expected.detach()), abs=1e-5)


def test_a_penalty_is_part_of_the_gradient_not_of_the_loss(shape: Shape, text: Text) -> None:
    """The gradient with a penalty, less that without, is the penalty's own: it is linear in its weight."""

    def measured(weight: float) -> tuple[float, torch.Tensor]:
        model = new_model(shape, 0)
        adapter = make_soft_mask(as_base(model, text, 16), SoftMaskConfig(openness=weight), Progress(quiet=True))
        language = Language(model, adapter)
        nats = backward(language, text.train[:3])
        return nats, torch.stack([patch.query_map.grad for patch in language.patches])

    (nats, none), (same, one), (_, three) = measured(0.0), measured(1.0), measured(3.0)
    assert nats == same
    assert float((one - none).abs().max()) > 1e-4
    torch.testing.assert_close(three - none, 3 * (one - none), rtol=1e-3, atol=1e-6)


def test_verdicts() -> None:
    cases = {"better than": (0.1, 0.05, 0.15), "worse than": (-0.1, -0.2, -0.05), "no different from": (0.1, -0.1, 0.3)}
    cases |= {"the same as": (1e-6, 1e-7, 2e-6), "one seed against": (1.0, 1.0, 1.0)}
    assert [verdict(Interval(*less)) for less in cases.values()] == list(cases)
