"""The population beside one mixture after another; what a composition is made of."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from svf_rl.base.load import Base
from svf_rl.dispatch.dispatcher import mixture, using
from svf_rl.dispatch.fewshot import FewshotConfig, Method, Objective, Per, compose, known_mixtures
from svf_rl.dispatch.population import Population
from svf_rl.errors import UserError
from svf_rl.progress import Progress
from svf_rl.rollout.episodes import EnvConfig, play
from svf_rl.rollout.sampler import Sampling
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.types import Expert

LETTER = EnvConfig("letter", "toys:toys/Letter-v0", 3)
SMALL: dict[str, Any] = {"shots": 3, "valid_size": 6, "population": 6, "rounds": 2}


@pytest.fixture
def base(tiny_base: Base) -> Base:
    return tiny_base


@pytest.fixture
def pair(draw: Callable[..., Expert]) -> dict[str, Expert]:
    return {"one": draw(0), "two": draw(1)}


def test_a_population_answers_as_one_mixture_after_another(
    base: Base, adapter: SVFAdapter, pair: dict[str, Expert], toy_env: Callable[..., Any]
) -> None:
    sampling, env, experts = Sampling(3, 0.0), toy_env("Letter"), list(pair.values())
    weights = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.4, 0.7]])
    together = Population(base, adapter, experts, env, sampling).play(weights, "train", range(4))
    for row, episodes in zip(weights, together, strict=True):
        with using(adapter, mixture(experts, row)):
            alone = play(base, env, "train", range(4), sampling, [0] * 4)
        assert [e and e.ids for e in episodes] == [e and e.ids for e in alone]


@pytest.mark.parametrize("per", list(Per))
@pytest.mark.parametrize("objective", list(Objective))
def test_the_chosen_mixture_is_the_best_on_validation(
    base: Base, adapter: SVFAdapter, pair: dict[str, Expert], per: Per, objective: Objective
) -> None:
    config = FewshotConfig(per=per, objective=objective, **SMALL)
    found = compose(base, adapter, pair, LETTER, config, 0, Progress(quiet=True))
    assert {c.name for c in found.compared} == {"search mean", "search best", "one", "two", "uniform", "base"}
    assert found.chosen.valid == max(c.valid for c in found.compared)
    assert found.chosen.weights.shape == ((2,) if per is Per.expert else (2, len(pair["one"].z)))
    assert bool(((found.chosen.weights >= 0) & (found.chosen.weights <= 1)).all())


@pytest.mark.parametrize(("method", "names"), [(Method.best, {"one", "two"}), (Method.uniform, {"uniform"})])
def test_the_simple_methods(base: Base, adapter: SVFAdapter, pair: dict[str, Expert], method: Method, names: set[str]) -> None:
    found = compose(base, adapter, pair, LETTER, FewshotConfig(method=method, **SMALL), 0, Progress(quiet=True))
    assert found.chosen.name in names
    assert found.history == []


def test_fewer_questions_than_asked_for_is_an_error(base: Base, adapter: SVFAdapter, pair: dict[str, Expert]) -> None:
    few = EnvConfig("letter", "toys:toys/Letter-v0", 3, {"rows": 5})
    with pytest.raises(UserError, match=r"expected 9 questions of the split train, .* has 5; give dispatch.shots=5"):
        compose(base, adapter, pair, few, FewshotConfig(**{**SMALL, "shots": 9}), 0, Progress(quiet=True))


def test_known_mixtures_are_every_expert_uniform_and_the_base() -> None:
    assert {name: w.tolist() for name, w in known_mixtures(["a", "b"]).items()} == {
        "a": [1, 0], "b": [0, 1], "uniform": [0.5, 0.5], "base": [0, 0],
    }  # fmt: skip
