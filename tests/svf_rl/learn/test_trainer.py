"""The loop: it learns, it changes nothing when there is nothing to learn or something is wrong, and it keeps the best."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import pytest
import torch
from torch import Tensor

from svf_rl.adapters import make_adapter
from svf_rl.attention.gated import GatedConfig, Output
from svf_rl.attention.selective import Form, SelectiveConfig
from svf_rl.attention.shiftable import KeysValues, ShiftableConfig
from svf_rl.attention.soft_mask import SoftMaskConfig
from svf_rl.errors import Diverged, FaultyRun, UserError
from svf_rl.learn import trainer
from svf_rl.learn.checkpoint import load_checkpoint
from svf_rl.learn.reinforce import Baseline
from svf_rl.learn.tracking import read_rows
from svf_rl.learn.trainer import AlgoConfig, Answers, KLKind, Run, question_indices, sample_groups, train, update
from svf_rl.rollout.sampler import draw_seed
from svf_rl.types import Episode, Group

MakeRun = Callable[..., Run]


def state(run: Run) -> dict[str, Tensor]:
    """z and Adam's moments, copied."""
    z = {name: p.detach().clone() for name, p in run.adapter.parameters().items()}
    moments = {
        f"{key} {name}": value.clone()
        for name, p in run.adapter.parameters().items()
        for key, value in run.optimizer.state.get(p, {}).items()
    }
    return z | moments


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def with_rewards(groups: list[Group], rewards: Iterator[float]) -> list[Group]:
    return [[dataclasses.replace(e, reward=next(rewards)) for e in group] for group in groups]


def poison(run: Run, value: float) -> Any:
    """Every gradient of one matrix is multiplied by `value` from now on."""
    return next(iter(run.adapter.parameters().values())).register_hook(lambda gradient: gradient * value)


# ---- it learns


def test_training_raises_the_reward(make_run: MakeRun) -> None:
    run = make_run(steps=24, prompts=8, group=8)
    train(run)
    rewards = [row["reward"] for row in read_rows(run.folder / "metrics.jsonl")]
    assert len(rewards) == 24
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.2
    assert run.progress.best > run.progress.base_valid
    moved = {name: z.detach() for name, z in run.adapter.parameters().items() if not torch.equal(z, torch.ones_like(z))}
    assert moved.keys() == run.adapter.parameters().keys()


@pytest.mark.parametrize("baseline", list(Baseline))
@pytest.mark.parametrize("signed", [False, True])
def test_every_baseline_trains(baseline: Baseline, signed: bool, make_run: MakeRun) -> None:
    run = make_run(steps=2, baseline=baseline, signed_reward=signed)
    before = state(run)
    train(run)
    assert not same(state(run), before)
    assert run.progress.skipped_steps == 0


# ---- one step, against the formula written out


def naive_gradient(run: Run, groups: list[Group], advantages: list[float], n: int) -> dict[str, Tensor]:
    """Of 1/N sum over episodes and tokens of -A logp + beta KL, with whole tables and dense autograd."""
    total = torch.zeros(())
    for episode, advantage in zip((e for g in groups for e in g), advantages, strict=True):
        ids, own = torch.tensor([episode.ids]), torch.tensor(episode.own[1:])
        token = torch.tensor(episode.ids[1:])[own][:, None]
        logp = torch.log_softmax(run.base.model(ids).logits[0, :-1], -1)[own]
        with run.adapter.disabled(), torch.no_grad():
            base = torch.log_softmax(run.base.model(ids).logits[0, :-1], -1)[own]
        drawn, base_drawn = logp.gather(1, token)[:, 0], base.gather(1, token)[:, 0]
        if run.algo.kl_kind is KLKind.exact:
            kl = torch.nn.functional.kl_div(base, logp, log_target=True, reduction="none").sum(-1)
        else:
            kl = (drawn - base_drawn).square() / 2  # its gradient: log-ratio times the score
        total = total + (-advantage * drawn + run.algo.kl * kl).sum() / n
    return dict(zip(run.adapter.parameters(), torch.autograd.grad(total, list(run.adapter.parameters().values())), strict=True))


def moved(run: Run) -> Run:
    """With z away from 1, so that there is a KL, and plain gradient descent, so that a step is the gradient."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for z in run.adapter.parameters().values():
            z.uniform_(0.9, 1.1, generator=generator)
    run.optimizer = torch.optim.SGD(list(run.adapter.parameters().values()), lr=1.0)
    return run


REWARDS = [0.0, 1.0, 1.0, 0.25, 0.5, 0.5, 0.5, 0.5, 1.0, 0.0, 0.0, 0.0]
LEAVE_ONE_OUT = [[-0.75, 7 / 12, 7 / 12, -5 / 12], [1.0, -1 / 3, -1 / 3, -1 / 3]]  # of the groups with a signal, by hand


@pytest.mark.parametrize("kind", list(KLKind))
@pytest.mark.parametrize("budget", [1, 10_000])
def test_a_step_is_the_gradient_of_the_formula(kind: KLKind, budget: int, make_run: MakeRun) -> None:
    settings = {"kl": 0.3, "kl_kind": kind, "micro_batch_tokens": budget, "clip": 1e6, "learning_rate": 0.05, "warmup": 0}
    run = moved(make_run(prompts=3, log_bound=None, **settings))
    groups = with_rewards(sample_groups(run, 0), iter(REWARDS))
    advantages = [a for group in LEAVE_ONE_OUT for a in group]
    expected = naive_gradient(run, [groups[0], groups[2]], advantages, n=12)  # 12: those without signal count
    before = state(run)
    figures = update(run, groups, 0)
    for name, gradient in expected.items():
        torch.testing.assert_close((before[name] - run.adapter.parameters()[name].detach()) / 0.05, gradient, atol=1e-4, rtol=1e-3)
    norm = math.sqrt(sum(float(g.square().sum()) for g in expected.values()))
    assert figures["gradient_norm"] == pytest.approx(norm, rel=1e-3)
    assert figures["groups_with_signal"] == pytest.approx(2 / 3)
    assert figures["mismatch"] < 1e-4
    assert figures["kl"] > 0


ATTENTION: dict[str, Any] = {
    "shiftable": ShiftableConfig(specialists=3, top_k=2, keys_values=KeysValues.own),
    "gated": GatedConfig(rank=1),
    "gated-hard": GatedConfig(output=Output.hard),
    "soft_mask": SoftMaskConfig(),
    "selective": SelectiveConfig(),
    "selective-nonlinear": SelectiveConfig(form=Form.nonlinear),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_modules_learn_from_what_they_wrote(name: str, make_run: MakeRun) -> None:
    """Nothing is scored by another policy than wrote it, though it is far from the base and hard gates are drawn."""
    run = make_run(prompts=3)
    run.adapter.uninstall()
    run.adapter = make_adapter(run.base, ATTENTION[name])
    generator = torch.Generator().manual_seed(0)
    for key, parameter in run.adapter.parameters().items():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        if name == "gated-hard" and key.endswith("output_bias"):
            parameter.data.fill_(0.3)  # half of the heads are shut
    run.optimizer = torch.optim.SGD([p for p in run.adapter.parameters().values() if p.requires_grad], lr=0.1)
    run.adapter.install()
    try:
        for step in range(3):
            before = state(run)
            figures = update(run, with_rewards(sample_groups(run, step), iter(REWARDS)), step)
            assert figures["mismatch"] < 1e-4
            assert not same(state(run), before)
    finally:
        run.adapter.uninstall()


def test_the_gradient_is_clipped(make_run: MakeRun) -> None:
    run = moved(make_run(log_bound=None, clip=0.01, learning_rate=0.5, warmup=0))
    before = state(run)
    figures = update(run, with_rewards(sample_groups(run, 0), itertools.cycle([0.0, 1.0])), 0)
    change = math.sqrt(sum(float((before[n] - z.detach()).square().sum()) for n, z in run.adapter.parameters().items()))
    assert figures["gradient_norm"] > 0.1  # before clipping
    assert change == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_without_a_weight_no_kl_is_computed_or_claimed(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(kl=0.0)
    monkeypatch.setattr(run.adapter, "disabled", lambda: pytest.fail("the base was asked for"))
    assert "kl" not in update(run, with_rewards(sample_groups(run, 0), itertools.cycle([0.0, 1.0])), 0)


@pytest.mark.parametrize("signed", [False, True])
def test_signed_rewards_punish_a_wrong_answer_that_none_beats(signed: bool, make_run: MakeRun) -> None:
    run = make_run(signed_reward=signed, baseline=Baseline.none, group=1)
    before = state(run)
    figures = update(run, with_rewards(sample_groups(run, 0), itertools.repeat(0.0)), 0)
    assert same(state(run), before) != signed
    assert figures["groups_with_signal"] == float(signed)


@pytest.mark.parametrize("bound", [0.02, 0.3])
def test_z_stays_within_the_trust_region_and_reaches_its_edge(bound: float, make_run: MakeRun) -> None:
    run = make_run(steps=3, learning_rate=0.5, warmup=0, log_bound=bound)
    train(run)
    moves = torch.cat([z.detach().log().abs() for z in run.adapter.parameters().values()])
    assert float(moves.max()) <= bound + 1e-6
    assert float((moves > bound - 1e-6).float().mean()) > 0.5


# ---- nothing to learn, or something wrong


@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_a_step_without_signal_changes_nothing(kl: float, make_run: MakeRun) -> None:
    run = make_run(kl=kl)
    update(run, sample_groups(run, 0), 0)  # so that Adam has moments that could drift
    before = state(run)
    figures = update(run, with_rewards(sample_groups(run, 1), itertools.repeat(0.5)), 1)
    assert same(state(run), before)
    assert figures["groups_with_signal"] == figures["gradient_norm"] == figures["loss"] == 0
    assert (run.progress.skipped_steps, run.progress.bad_steps) == (0, 0)  # nothing was wrong


def test_a_run_whose_rewards_never_differ_ends_as_the_base(make_run: MakeRun) -> None:
    run = make_run("Constant", steps=3)
    train(run)
    assert all(torch.equal(z, torch.ones_like(z)) for z in run.adapter.parameters().values())
    assert run.progress.best_step == 0


@pytest.mark.parametrize("baseline", list(Baseline))
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_skips_the_step(baseline: Baseline, bad: float, make_run: MakeRun) -> None:
    run = make_run(baseline=baseline)
    update(run, sample_groups(run, 0), 0)
    before = state(run)
    update(run, with_rewards(sample_groups(run, 1), itertools.cycle([0.0, bad, 1.0])), 1)
    assert same(state(run), before)
    assert (run.progress.skipped_steps, run.progress.bad_steps) == (1, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_skips_the_step(bad: float, make_run: MakeRun) -> None:
    run = make_run()
    groups = with_rewards(sample_groups(run, 0), itertools.cycle([0.0, 1.0]))
    update(run, groups, 0)
    before = state(run)
    hook = poison(run, bad)
    update(run, groups, 1)
    assert same(state(run), before)
    assert all(z.grad is None for z in run.adapter.parameters().values())  # nothing of it is left for the next step
    hook.remove()
    update(run, groups, 2)
    assert not same(state(run), before)
    assert (run.progress.skipped_steps, run.progress.bad_steps) == (1, 0)  # in a row, so a good step starts again


def test_a_loss_that_is_not_finite_skips_the_step(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a constant that was added is finite: only the loss shows it."""
    run = make_run()
    before, honest = state(run), trainer.reinforce.loss
    monkeypatch.setattr(trainer.reinforce, "loss", lambda *args: honest(*args) + math.nan)
    update(run, with_rewards(sample_groups(run, 0), itertools.cycle([0.0, 1.0])), 0)
    assert same(state(run), before)
    assert run.progress.skipped_steps == 1


def test_too_many_bad_steps_in_a_row_end_the_run(make_run: MakeRun) -> None:
    run = make_run(steps=20, max_bad_steps=3, eval_every=100, baseline=Baseline.none, signed_reward=True)
    poison(run, math.nan)
    before = state(run)
    with pytest.raises(Diverged, match="3 steps in a row; lower the learning rate"):
        train(run)
    assert same(state(run), before)
    stored, _ = load_checkpoint(run.folder / "checkpoint.safetensors", run.adapter.parameters(), run.optimizer)
    assert (stored.step, stored.skipped_steps) == (2, 2)  # the state before the last straw
    assert same(state(run), before)


# ---- faults


def test_a_group_that_lost_an_episode_is_dropped_and_counted(make_run: MakeRun) -> None:
    run = make_run("Broken", env={"every": 16}, train_rows=16, prompts=16, group=2)
    groups = sample_groups(run, 0)  # row 0 is among 16
    assert len(groups) == 15
    assert {len(g) for g in groups} == {2}
    assert (run.progress.faults, run.progress.episodes) == (2, 32)


def test_a_step_that_lost_every_episode_changes_nothing_and_has_no_reward(make_run: MakeRun) -> None:
    run = make_run("Broken", env={"every": 1}, prompts=1, group=2, steps=1)
    train(run)
    (row,) = read_rows(run.folder / "metrics.jsonl")
    assert math.isnan(row["reward"])
    assert row["groups_with_signal"] == 0
    assert all(torch.equal(z, torch.ones_like(z)) for z in run.adapter.parameters().values())


@pytest.mark.parametrize("when", ["step", "reset"])
def test_a_run_that_loses_too_many_episodes_stops(when: str, make_run: MakeRun) -> None:
    run = make_run("Broken", env={"every": 5, "when": when}, steps=50, prompts=8)
    with pytest.raises(FaultyRun, match=r"\d+ of \d+ episodes were lost because the environment failed"):
        train(run)
    assert run.progress.faults <= 8 * 4


def test_rewards_that_are_no_numbers_are_faults(make_run: MakeRun) -> None:
    run = make_run("Unscorable", steps=50)
    with pytest.raises(FaultyRun):
        train(run)


@pytest.mark.parametrize("every", [1, 2])
def test_lost_validation_answers_stop_the_run_and_are_no_zeros(every: int, make_run: MakeRun) -> None:
    run = make_run("Broken", env={"every": every, "split": "valid"}, steps=3)
    with pytest.raises(FaultyRun):
        train(run)


# ---- what is kept


def scripted(run: Run, monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> list[int]:
    """Validations find these accuracies, in order; returns the list of the steps after which they are asked."""
    script, asked = iter(accuracies), []

    def validate(of: Run) -> float:
        asked.append(of.progress.step)
        return next(script)

    monkeypatch.setattr(trainer, "validate", validate)
    return asked


def test_the_best_by_validation_is_kept_and_a_tie_keeps_the_earlier(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(steps=9, eval_every=2)
    asked = scripted(run, monkeypatch, [0.3, 0.2, 0.6, 0.6, 0.5, 0.1])
    seen: dict[int, dict[str, Tensor]] = {}
    log = run.tracker.log

    def spy(step: int, figures: Any, groups: Any) -> None:
        seen[step + 1] = {name: z.detach().clone() for name, z in run.adapter.parameters().items()}
        log(step, figures, groups)

    monkeypatch.setattr(run.tracker, "log", spy)
    train(run)
    assert asked == [0, 2, 4, 6, 8, 9]  # the base, every other step, and the last
    assert (run.progress.best, run.progress.best_step, run.progress.base_valid) == (0.6, 4, 0.3)
    assert same(run.best, seen[4])
    assert not same(run.best, seen[6])
    rows = read_rows(run.folder / "metrics.jsonl")
    assert {r["step"]: r["valid_accuracy"] for r in rows if "valid_accuracy" in r} == {1: 0.2, 3: 0.6, 5: 0.6, 7: 0.5, 8: 0.1}


def test_the_base_is_kept_when_nothing_beats_it(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(steps=4, eval_every=2)
    scripted(run, monkeypatch, [0.5, 0.5, 0.4])
    train(run)
    assert run.progress.best_step == 0
    assert all(torch.equal(z, torch.ones_like(z)) for z in run.best.values())
    assert not any(torch.equal(z, torch.ones_like(z)) for z in run.adapter.parameters().values())


@pytest.mark.parametrize(("patience", "steps"), [(1, 4), (2, 6), (3, 8), (0, 20)])
def test_early_stopping_after_patience_validations_without_a_new_best(
    patience: int, steps: int, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(steps=20, eval_every=2, patience=patience, prompts=1, group=2)
    scripted(run, monkeypatch, [0.3, 0.4] + [0.4] * 20)
    train(run)
    assert run.progress.step == steps
    rows = len(read_rows(run.folder / "metrics.jsonl"))
    train(run)  # a run that is done stays done
    assert run.progress.step == steps
    assert len(read_rows(run.folder / "metrics.jsonl")) == rows


def test_validation_is_greedy_on_its_own_split_and_the_test_split_is_not_touched(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, played = make_run(steps=2, eval_every=1), []
    honest = trainer.play

    def spy(base: Any, env: Any, split: str, indices: Any, sampling: Any, seeds: Any, done: Any = None) -> list[Episode | None]:
        played.append((str(split), sampling.temperature, len(indices)))
        return honest(base, env, split, indices, sampling, seeds, done)

    monkeypatch.setattr(trainer, "play", spy)
    train(run)
    assert played == [("valid", 0.0, 16), ("train", 1.0, 16), ("valid", 0.0, 16), ("train", 1.0, 16), ("valid", 0.0, 16)]


def test_validation_takes_all_questions_of_a_small_split(make_run: MakeRun) -> None:
    run = make_run(env={"rows": 5}, train_rows=5)
    assert 0 <= trainer.validate(run) <= 1
    assert run.progress.episodes == 5


# ---- schedule, questions, seeds


def test_the_optimiser_steps_at_the_scheduled_rate(make_run: MakeRun) -> None:
    run = make_run(steps=10, warmup=4, learning_rate=0.02)
    update(run, with_rewards(sample_groups(run, 0), itertools.cycle([0.0, 1.0])), 1)
    assert [group["lr"] for group in run.optimizer.param_groups] == [0.01]
    change = torch.cat([(z.detach() - 1).abs() for z in run.adapter.parameters().values()])
    torch.testing.assert_close(change.median(), torch.tensor(0.01), rtol=0.05, atol=0)  # Adam's first step is the rate


def test_every_question_comes_once_before_any_comes_again(make_run: MakeRun) -> None:
    run = make_run(prompts=8, train_rows=24)
    epochs = [[i for step in range(3 * e, 3 * e + 3) for i in question_indices(run, step)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(24))
    assert epochs[0] != list(range(24))
    other = dataclasses.replace(run, seed=1)
    assert question_indices(other, 0) != question_indices(run, 0)


def test_more_questions_a_step_than_there_are_go_round(make_run: MakeRun) -> None:
    assert sorted(question_indices(make_run(prompts=5, train_rows=2), 0)).count(0) in (2, 3)


def test_draws_are_a_function_of_seed_step_and_episode(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, seen = trainer.play, []

    def spy(base: Any, env: Any, split: str, indices: Any, sampling: Any, seeds: Any, done: Any = None) -> list[Episode | None]:
        seen.append(list(seeds))
        return honest(base, env, split, indices, sampling, seeds, done)

    monkeypatch.setattr(trainer, "play", spy)
    run = make_run()
    in_order = [sample_groups(run, step) for step in range(3)]
    again = sample_groups(run, 2)  # whatever happened before
    assert [[e.ids for e in g] for g in again] == [[e.ids for e in g] for g in in_order[2]]
    assert seen[3] == seen[2]
    other = dataclasses.replace(run, seed=1)
    sample_groups(other, 0)
    drawn = [s for seeds in (*seen[:3], seen[4]) for s in seeds]
    assert len(set(drawn)) == len(drawn) == 4 * 16
    assert seen[1][3] == draw_seed(0, 1, 3)


def test_draw_seeds_are_spread_out_and_the_same_in_every_process() -> None:
    assert draw_seed(0, 0, 0) == 3759667472130186517
    seeds = {draw_seed(*parts) for parts in itertools.product(range(20), repeat=3)}
    assert len(seeds) == 8000
    assert all(0 <= s < 2**62 for s in seeds)
    assert 0.45 < sum(s & 1 for s in seeds) / 8000 < 0.55


# ---- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "algo.steps must be at least 1, not 0"),
        ({"prompts": -1}, "algo.prompts must be at least 1"),
        ({"rows": 0}, "algo.rows must be at least 1"),
        ({"max_bad_steps": 0}, "algo.max_bad_steps must be at least 1"),
        ({"temperature": -0.1}, "algo.temperature must be at least 0"),
        ({"kl": math.nan}, "algo.kl must be at least 0, not nan"),
        ({"warmup": -1}, "algo.warmup must be at least 0"),
        ({"patience": -1}, "algo.patience must be at least 0"),
        ({"learning_rate": 0.0}, "algo.learning_rate must be above 0"),
        ({"learning_rate": math.inf}, "algo.learning_rate must be above 0, not inf"),
        ({"clip": math.nan}, "algo.clip must be above 0"),
        ({"group": 1}, "algo.baseline=loo needs algo.group of at least 2"),
        ({"group": 1, "baseline": Baseline.group_std}, "algo.baseline=group_std needs algo.group of at least 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AlgoConfig(**settings)


def test_one_answer_a_question_is_fine_without_a_group_baseline() -> None:
    assert AlgoConfig(group=1, baseline=Baseline.none).group == 1
    assert AlgoConfig(group=1, baseline=Baseline.batch, warmup=0, patience=0, kl=0.0, temperature=0.0).kl == 0


# ---- gold answers


class Copy(gymnasium.Env[str, str]):
    """The gold answer is "yes"; it tells it with the reward."""

    observation_space = action_space = gymnasium.spaces.Text(10)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        return f"{(options or {})['index']}?", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "", float(action == "yes"), True, False, {"gold": "yes"}


def test_with_gold_answers_the_loss_is_the_cross_entropy(make_run: MakeRun) -> None:
    run = make_run(answers=Answers.gold, group=1, baseline=Baseline.none, kl=0.0)
    run.env = Copy()
    groups = sample_groups(run, 0)
    expected = 0.0
    for (episode,) in groups:
        ids, own = torch.tensor([episode.ids]), torch.tensor(episode.own)
        with torch.no_grad():
            logp = run.base.model(ids).logits[0, :-1].log_softmax(-1)
        expected -= logp[torch.arange(len(own) - 1), ids[0, 1:]][own[1:]].sum().item() / len(groups)
    figures = update(run, groups, 0)
    assert figures["loss"] == pytest.approx(expected, rel=1e-4)
    assert "mismatch" not in figures


def test_training_on_gold_answers_makes_them_likelier(make_run: MakeRun) -> None:
    run = make_run(answers=Answers.gold, group=1, baseline=Baseline.none, kl=0.0, steps=10)
    run.env = Copy()
    train(run)
    losses = [row["loss"] for row in read_rows(run.folder / "metrics.jsonl")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("settings", [{"group": 2, "baseline": Baseline.none}, {"group": 1, "baseline": Baseline.batch}])
def test_gold_answers_have_no_groups_and_no_baseline(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"give algo\.group=1 algo\.baseline=none"):
        AlgoConfig(answers=Answers.gold, **settings)
