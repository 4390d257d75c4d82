"""Training from scratch: what a batch is, the rate, and going on after a stop."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from svf_rl.attention.soft_mask import SoftMaskConfig, make_soft_mask
from svf_rl.errors import Diverged, UserError
from svf_rl.files import read_tensors
from svf_rl.progress import Progress
from svf_rl.studies import training
from svf_rl.studies.scratch import Language, Shape, Text, as_base, judge, new_model
from svf_rl.studies.training import Recipe, batches, epoch_file, load_model, train

QUIET = Progress(quiet=True)
RECIPE = Recipe(epochs=2, batches=3, rows=4, learning_rate=0.01, warmup=2)


def masked(shape: Shape, text: Text) -> Language:
    model = new_model(shape, 0)
    return Language(model, make_soft_mask(as_base(model, text, shape.context), SoftMaskConfig(), QUIET))


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

    update, path = training._update, tmp_path / "stopped.safetensors"
    monkeypatch.setattr(training, "_update", until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(masked(shape, text), text, RECIPE, 0, path, QUIET)
    monkeypatch.setattr(training, "_update", update)
    again = masked(shape, text)
    resumed = train(again, text, RECIPE, 0, path, QUIET)
    assert (resumed.losses, resumed.valid) == (history.losses, history.valid)
    assert all(torch.equal(p, dict(whole.named_parameters())[name]) for name, p in again.named_parameters())
    assert train(masked(shape, text), text, RECIPE, 0, path, QUIET) == resumed  # there is nothing left to do
    assert not any(name.startswith("exp_avg") for name in read_tensors(path)[0])


def test_the_model_after_each_epoch_is_kept(shape: Shape, text: Text, tmp_path: Path) -> None:
    """Weights alone; read into a fresh model, they have the loss that the history says."""
    path = tmp_path / "cell.safetensors"
    language = masked(shape, text)
    history = train(language, text, RECIPE, 0, path, QUIET)
    names = {f"p.{name}" for name, _ in language.named_parameters()}
    for epoch, nats in enumerate(history.valid, 1):
        assert read_tensors(tmp_path / f"cell-epoch{epoch}.safetensors")[0].keys() == names
        again = masked(shape, text)
        load_model(epoch_file(path, epoch), again)
        assert judge(again, text.valid)["nats"] == nats
    assert history.valid[0] != history.valid[1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cell-epoch1.safetensors", "cell-epoch2.safetensors", path.name]
    with pytest.raises(UserError, match="of another shape"):
        load_model(path, Language(new_model(dataclasses.replace(shape, layers=3), 0)))
    with pytest.raises(UserError, match="cannot read the model"):
        load_model(epoch_file(path, 3), language)


def test_a_checkpoint_of_another_model_or_a_damaged_one_is_refused(shape: Shape, text: Text, tmp_path: Path) -> None:
    path = tmp_path / "cell.safetensors"
    train(Language(new_model(shape, 0)), text, RECIPE, 0, path, QUIET)
    for other in (dataclasses.replace(shape, feed_forward=25), dataclasses.replace(shape, layers=3)):
        with pytest.raises(UserError, match="of another shape"):
            train(Language(new_model(other, 0)), text, RECIPE, 0, path, QUIET)
    with pytest.raises(UserError, match="another recipe, seed or text"):
        train(Language(new_model(shape, 0)), text, dataclasses.replace(RECIPE, learning_rate=0.02), 0, path, QUIET)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match="cannot go on from"):
        train(Language(new_model(shape, 0)), text, RECIPE, 0, path, QUIET)


def test_a_gradient_that_is_not_finite_ends_the_training(shape: Shape, text: Text, tmp_path: Path) -> None:
    model = new_model(shape, 0)
    with torch.no_grad():
        model.model.norm.weight.fill_(math.inf)
    with pytest.raises(Diverged, match="lower the learning rate"):
        train(Language(model), text, RECIPE, 0, tmp_path / "cell.safetensors", QUIET)
