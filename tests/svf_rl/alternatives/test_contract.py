"""What every alternative promises, on every architecture: identity at first, the exact base when off, files, and learning."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from svf_rl.adapter import Adapter
from svf_rl.adapters import ADAPTERS, make_adapter, open_adapter, save_adapter
from svf_rl.alternatives.swapped import SwappedAdapter
from svf_rl.base.load import Base, fingerprint
from svf_rl.errors import ExpertError
from svf_rl.learn.checkpoint import load_checkpoint
from svf_rl.learn.tracking import METRICS, Tracker, read_rows
from svf_rl.learn.trainer import Run, train
from svf_rl.progress import Progress
from svf_rl.rollout.engine import Engine, make_forward
from svf_rl.rollout.sampler import Sampling, sample

NAMES = ["lora", "ia3", "tinylora", "bias", "full"]
RATES = {"lora": 0.01, "ia3": 0.1, "tinylora": 0.003, "bias": 0.3, "full": 0.003}
ABOUT = {
    "base": "tiny",
    "fingerprint": "",
    "environment": "toys/Letter-v0",
    "command": "test",
    "revision": "unknown",
    "metrics": {"base_accuracy": 0.5},
}
Make = Callable[..., SwappedAdapter]
Logits = Callable[[Base], Tensor]
Moved = Callable[[SwappedAdapter], SwappedAdapter]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def about(base: Base) -> dict[str, Any]:
    return {**ABOUT, "fingerprint": base.fingerprint}


def tree(base: Base) -> dict[str, Any]:
    """Every module and every weight of the base, as objects."""
    model = base.model
    return {**dict(model.named_modules()), **dict(model.named_parameters(remove_duplicate=False))}


def same_objects(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(a[key] is b[key] for key in a)


def test_the_table_knows_them_all() -> None:
    assert set(NAMES) <= set(ADAPTERS)
    assert all(ADAPTERS[name].settings().name == name for name in NAMES)


def test_an_untrained_adapter_is_the_base(name: str, base: Base, make: Make, logits: Logits) -> None:
    before = logits(base)
    adapter = make(base, name)
    assert isinstance(adapter, Adapter)
    assert adapter.name == name
    assert torch.equal(logits(base), before)


def test_an_untrained_adapter_is_the_base_in_bfloat16(name: str, half_bases: dict[str, Base], make: Make, logits: Logits) -> None:
    for base in half_bases.values():
        before = logits(base)
        adapter = make(base, name)
        assert torch.equal(logits(base), before)
        assert all(p.dtype == torch.float32 for p in adapter.parameters().values())
        for _ in range(2):  # as micro-batches do
            logits(base).square().mean().backward()
        grown = dict(adapter.parameters())
        assert any(p.grad is not None and bool(p.grad.any()) for p in grown.values())
        adapter.load_state({key: value + 0.1 for key, value in adapter.state().items()})
        assert not torch.equal(logits(base), before)
        adapter.uninstall()
        assert fingerprint(base.model) == base.fingerprint


def test_every_parameter_has_a_gradient_after_a_step(name: str, base: Base, make: Make, logits: Logits) -> None:
    adapter = make(base, name)
    trained = adapter.parameters()
    optimizer = torch.optim.Adam(trained.values(), lr=0.01)
    for _ in range(2):  # A of LoRA has none while B is 0
        optimizer.zero_grad()
        logits(base).log_softmax(-1)[..., 0].mean().backward()
        optimizer.step()
        adapter.constrain()
    without = [key for key, p in trained.items() if p.grad is None or not bool(p.grad.any())]
    assert without == []
    assert all(
        parameter.grad is None for parameter in base.model.parameters() if id(parameter) not in set(map(id, trained.values()))
    )


def test_off_it_is_the_base_and_on_it_is_itself_again(name: str, base: Base, make: Make, moved: Moved, logits: Logits) -> None:
    before, objects = logits(base), tree(base)
    adapter = moved(make(base, name))
    adapted = logits(base)
    assert not torch.equal(adapted, before)
    with adapter.disabled():
        assert torch.equal(logits(base), before)
        assert fingerprint(base.model) == base.fingerprint
        with adapter.disabled():
            assert torch.equal(logits(base), before)
        assert torch.equal(logits(base), before)
    assert torch.equal(logits(base), adapted)
    with pytest.raises(ZeroDivisionError), adapter.disabled():
        1 / 0  # noqa: B018
    assert torch.equal(logits(base), adapted)
    adapter.uninstall()
    assert same_objects(tree(base), objects)
    assert fingerprint(base.model) == base.fingerprint
    assert not hasattr(base.model, "peft_config")
    with adapter.disabled():
        pass
    assert same_objects(tree(base), objects)  # it was not installed, so it is not afterwards


def test_making_one_changes_neither_the_base_nor_the_random_stream(name: str, base: Base) -> None:
    objects, stream = tree(base), torch.random.get_rng_state()
    first = make_adapter(base, ADAPTERS[name].settings())
    assert same_objects(tree(base), objects)
    assert torch.equal(torch.random.get_rng_state(), stream)
    second = make_adapter(base, ADAPTERS[name].settings()).state()
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.state().items())


def test_the_sampler_writes_with_the_adapted_model(name: str, base: Base, make: Make, moved: Moved) -> None:
    adapter, prompts = moved(make(base, name)), [[5, 6, 7], [8, 9]]
    written = sample(base, prompts, Sampling(6, 0.0), [0, 1])
    for prompt, completion in zip(prompts, written, strict=True):
        scores = base.logits(base.hidden(torch.tensor([prompt + completion.ids]))).log_softmax(-1)[0, len(prompt) - 1 : -1]
        chosen = scores.gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs), chosen, atol=2e-4, rtol=2e-4)
    assert isinstance(make_forward(base, 2, 16), Engine)
    with adapter.disabled():
        assert sample(base, prompts, Sampling(6, 0.0), [0, 1]) != written


def test_a_state_of_something_else_is_refused_as_a_whole(name: str, tiny_base: Base, make: Make) -> None:
    adapter = make(tiny_base, name)
    before = adapter.state()
    first = next(iter(before))
    for wrong in (
        {},
        {key: value + 1 for key, value in before.items() if key != first},
        {**{key: value + 1 for key, value in before.items()}, "extra": torch.zeros(1)},
        {**{key: value + 1 for key, value in before.items()}, first: torch.zeros(1)},
    ):
        with pytest.raises(ValueError, match="names or shapes"):
            adapter.load_state(wrong)
        assert all(torch.equal(value, before[key]) for key, value in adapter.state().items())


def test_a_file_brings_back_the_model(name: str, base: Base, make: Make, moved: Moved, logits: Logits, tmp_path: Path) -> None:
    adapter, settings = moved(make(base, name)), ADAPTERS[name].settings()
    adapted = logits(base)
    adapter.uninstall()
    save_adapter(tmp_path / "file", adapter, settings, about(base))
    opened, history = open_adapter(tmp_path / "file", base)
    opened.install()
    try:
        assert torch.equal(logits(base), adapted)
    finally:
        opened.uninstall()
    assert history["metrics"] == ABOUT["metrics"]


def test_a_file_of_another_base_is_refused(name: str, architectures: dict[str, Base], make: Make, tmp_path: Path) -> None:
    adapter = make(architectures["llama"], name)
    save_adapter(tmp_path / "file", adapter, ADAPTERS[name].settings(), about(architectures["llama"]))
    with pytest.raises(ExpertError, match="load that base"):
        open_adapter(tmp_path / "file", architectures["qwen2"])


def test_the_settings_of_a_file_decide_what_is_made(tiny_base: Base, make: Make, moved: Moved, tmp_path: Path) -> None:
    settings = dataclasses.replace(ADAPTERS["lora"].settings(), rank=1, targets="mlp")
    adapter = moved(make(tiny_base, "lora", rank=1, targets="mlp"))
    save_adapter(tmp_path / "file", adapter, settings, about(tiny_base))
    adapter.uninstall()
    opened, _ = open_adapter(tmp_path / "file", tiny_base)
    assert all(torch.equal(value, opened.state()[key]) for key, value in adapter.state().items())


def test_figures_are_explained_and_start_at_zero(name: str, tiny_base: Base, make: Make) -> None:
    adapter = make(tiny_base, name)
    assert adapter.figures() == {"adapter_move": 0.0}
    assert "adapter_move" in METRICS
    adapter.load_state({key: value + 0.5 for key, value in adapter.state().items()})
    assert adapter.figures()["adapter_move"] == pytest.approx(0.5, rel=1e-4)
    assert adapter.penalty() is None


# ---- the loop


@pytest.fixture
def run_of(make_run: Callable[..., Run], make: Make) -> Iterator[Callable[..., Run]]:
    """make_run with an alternative in place of the z that it makes."""
    trackers: list[Tracker] = []

    def alternative(name: str, **algo: Any) -> Run:
        run = make_run(learning_rate=RATES[name], **algo)
        run.adapter.uninstall()
        adapter = make(run.base, name)
        run.tracker.close()
        trackers.append(Tracker(run.folder, Progress(quiet=True), adapter.figures))
        trackers[-1].start(0)
        optimizer = torch.optim.AdamW(adapter.parameters().values(), weight_decay=0.0)
        return dataclasses.replace(run, adapter=adapter, tracker=trackers[-1], optimizer=optimizer, best=adapter.state())

    yield alternative
    for tracker in trackers:
        tracker.close()


def test_training_raises_the_reward(name: str, run_of: Callable[..., Run]) -> None:
    run = run_of(name, steps=16, prompts=4, group=8, eval_every=8)
    train(run)
    rewards = [row["reward"] for row in read_rows(run.folder / "metrics.jsonl")]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:2]) / 2 + 0.1
    run.adapter.uninstall()
    assert fingerprint(run.base.model) == run.base.fingerprint


def test_a_resumed_run_is_the_uninterrupted_one(name: str, run_of: Callable[..., Run]) -> None:
    whole = run_of(name, steps=4, eval_every=2)
    train(whole)
    expected = whole.adapter.state()
    whole.adapter.uninstall()
    cut = run_of(name, steps=4, eval_every=2)
    cut.tracker.steps = lambda start, stop: range(start, 2)  # type: ignore[method-assign]
    train(cut)
    cut.adapter.uninstall()
    again = run_of(name, steps=4, eval_every=2)
    progress, best = load_checkpoint(cut.folder / "checkpoint.safetensors", again.adapter.parameters(), again.optimizer)
    again = dataclasses.replace(again, progress=progress, best=best)
    again.adapter.install()
    train(again)
    assert all(torch.equal(value, expected[key]) for key, value in again.adapter.state().items())
