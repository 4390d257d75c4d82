"""Training from scratch: what a batch is, going on after a stop, what a model is judged by."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from svf_rl.attention.soft_mask import SoftMaskConfig, make_soft_mask
from svf_rl.errors import Diverged, UserError
from svf_rl.evaluate.stats import Interval
from svf_rl.progress import Progress
from svf_rl.studies import scratch
from svf_rl.studies.scratch import (
    Language,
    Recipe,
    Shape,
    Text,
    as_base,
    batches,
    judge,
    new_model,
    peak,
    read_text,
    train,
    verdict,
)

QUIET = Progress(quiet=True)
RECIPE = Recipe(epochs=2, batches=3, rows=4, learning_rate=0.01, warmup=2)


def masked(shape: Shape, text: Text) -> Language:
    model = new_model(shape, 0)
    return Language(model, make_soft_mask(as_base(model, text, shape.context), SoftMaskConfig(), QUIET))


def test_a_corpus_becomes_rows_and_a_vocabulary(text: Text, corpus: Path) -> None:
    assert text.vocabulary == len(set(corpus.read_text()))
    assert {rows.shape[1] for rows in (text.train, text.valid, text.test)} == {17}
    embedded = read_text(str(corpus), "embedded", 16, print)
    assert embedded.vocabulary == 1 + max(*embedded.codec.stop_ids, embedded.codec.pad_id)


def test_batches_depend_on_seed_and_epoch_alone_and_hold_no_row_twice() -> None:
    rows = torch.arange(30)[:, None]
    drawn = batches(rows, RECIPE, 1, 0)
    assert [len(some) for some in drawn] == [4, 4, 4]
    assert torch.cat(drawn).unique().numel() == 12
    assert torch.equal(torch.cat(drawn), torch.cat(batches(rows, RECIPE, 1, 0)))
    assert not torch.equal(torch.cat(drawn), torch.cat(batches(rows, RECIPE, 1, 1)))
    every = batches(rows, dataclasses.replace(RECIPE, batches=99), 0, 0)
    assert len(every) == 7  # the last two rows fill no batch


def test_the_rate_rises_then_falls_to_a_tenth() -> None:
    rates = [Recipe(1, 1, 1, 1.0, warmup=4).rate(step, 10) for step in range(11)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert (rates[4], rates[7], rates[10]) == pytest.approx((1.0, 0.55, 0.1))


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


def test_everything_is_trained_and_a_stopped_training_goes_on(
    shape: Shape, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = masked(shape, text)
    before = {name: p.detach().clone() for name, p in whole.named_parameters()}
    history = train(whole, text, RECIPE, 0, tmp_path / "whole.safetensors", QUIET)
    assert (len(history.losses), len(history.valid)) == (6, 2)
    moved = {name for name, p in whole.named_parameters() if not torch.equal(p, before[name])}
    assert {name.split(".")[0] for name in moved} == {"model", "patches"}
    assert before.keys() - moved <= {"patches.0.key_map", "patches.1.key_map"}  # u starts at zero, and w waits for it

    left = [4]

    def until_interrupted(*args: Any) -> float:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return update(*args)

    update, path = scratch._update, tmp_path / "stopped.safetensors"
    monkeypatch.setattr(scratch, "_update", until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(masked(shape, text), text, RECIPE, 0, path, QUIET)
    monkeypatch.setattr(scratch, "_update", update)
    again = masked(shape, text)
    resumed = train(again, text, RECIPE, 0, path, QUIET)
    assert (resumed.losses, resumed.valid) == (history.losses, history.valid)
    assert all(torch.equal(p, dict(whole.named_parameters())[name]) for name, p in again.named_parameters())


def test_a_checkpoint_of_another_model_or_a_damaged_one_is_refused(shape: Shape, text: Text, tmp_path: Path) -> None:
    path = tmp_path / "cell.safetensors"
    train(Language(new_model(shape, 0)), text, RECIPE, 0, path, QUIET)
    for other in (dataclasses.replace(shape, feed_forward=25), dataclasses.replace(shape, layers=3)):
        with pytest.raises(UserError, match="of another shape"):
            train(Language(new_model(other, 0)), text, RECIPE, 0, path, QUIET)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match="cannot go on from"):
        train(Language(new_model(shape, 0)), text, RECIPE, 0, path, QUIET)


def test_a_gradient_that_is_not_finite_ends_the_training(shape: Shape, text: Text, tmp_path: Path) -> None:
    model = new_model(shape, 0)
    with torch.no_grad():
        model.model.norm.weight.fill_(math.inf)
    with pytest.raises(Diverged, match="lower the learning rate"):
        train(Language(model), text, RECIPE, 0, tmp_path / "cell.safetensors", QUIET)


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
    assert scratch.backward(language, ids) == pytest.approx(float(expected.detach()), abs=1e-5)


def test_verdicts() -> None:
    cases = {"better than": (0.1, 0.05, 0.15), "worse than": (-0.1, -0.2, -0.05), "no different from": (0.1, -0.1, 0.3)}
    cases |= {"the same as": (1e-6, 1e-7, 2e-6), "one seed against": (1.0, 1.0, 1.0)}
    assert [verdict(Interval(*less)) for less in cases.values()] == list(cases)
