"""The model of the harness beside the harness's own, on the base; experts and dispatched systems beside each row alone."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from svf_rl.base.load import Base  # noqa: E402
from svf_rl.errors import UserError  # noqa: E402
from svf_rl.evaluate.harness import HarnessModel, cut, sampling_of  # noqa: E402
from svf_rl.evaluate.rows import Part, Row, base_row, file_row  # noqa: E402

PAIRS = [("Question: Mia has", " 54 pens"), ("a = b", " yes"), ("", "The answer"), ("trailing blank ", "x y"), ("a = b", " no")]
LONG = "She buys 13 pens. " * 200


def requests(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


@pytest.fixture(scope="module")
def make_theirs(architecture_folders: dict[str, Path]) -> Callable[..., Any]:
    return partial(HFLM, pretrained=str(architecture_folders["llama"]), dtype="float32", device="cpu", batch_size=1)


@pytest.fixture(scope="module")
def theirs(make_theirs: Callable[..., Any]) -> Any:
    return make_theirs()


@pytest.fixture
def ours(tiny_base: Base) -> HarnessModel:
    return HarnessModel(tiny_base, base_row(), rows=3)


def test_likelihoods_are_the_harnesss_own(ours: HarnessModel, theirs: Any) -> None:
    asked = requests("loglikelihood", [*PAIRS, (LONG, " the end")])
    for mine, own in zip(ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True):
        assert mine == (pytest.approx(own[0], rel=1e-4), own[1])


def test_whole_texts_are_the_harnesss_own(ours: HarnessModel, make_theirs: Callable[..., Any]) -> None:
    asked = requests("loglikelihood_rolling", [("def add(x, y):",), (LONG,), ("",)])
    without = make_theirs(add_bos_token=False)
    assert ours.loglikelihood_rolling(asked) == pytest.approx(without.loglikelihood_rolling(asked), rel=1e-4)


def test_answers_are_the_harnesss_own(ours: HarnessModel, theirs: Any) -> None:
    settings = [{"until": ["e"], "max_gen_toks": 12}, {"until": [], "max_gen_toks": 5, "do_sample": False}]
    asked = requests("generate_until", [(context, one) for context in ("Mia has", "def f(x):", LONG) for one in settings])
    found = ours.generate_until(asked)
    assert found == theirs.generate_until(asked)
    assert len(set(found)) > 2


def halves(base: Base, path: Path) -> Row:
    """A dispatched system: texts with an "a" go to the expert, the others to the base."""
    (expert,) = file_row("one", path, base).route(["x"])

    def route(prompts: Sequence[str]) -> list[Part]:
        mine = [i for i, prompt in enumerate(prompts) if "a" in prompt]
        rest = [i for i in range(len(prompts)) if i not in mine]
        return [Part(mine, "one", expert.within), Part(rest, "base", nullcontext)]

    return Row("halves", "", route)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("loglikelihood", PAIRS),
        ("loglikelihood_rolling", [("a pen",), ("you",)]),
        ("generate_until", [(context, {"until": ["\n"], "max_gen_toks": 6}) for context in ("a pen", "you")]),
    ],
)
def test_a_dispatched_system_answers_each_request_as_its_row_alone(
    tiny_base: Base, save_expert_of: Callable[..., Path], method: str, arguments: list[tuple[Any, ...]]
) -> None:
    path, asked = save_expert_of("one"), requests(method, arguments)
    rows = [base_row(), file_row("one", path, tiny_base), halves(tiny_base, path)]
    base, expert, system = (getattr(HarnessModel(tiny_base, row, rows=2), method) for row in rows)
    alone = [(expert if "a" in one.args[0] else base)([one])[0] for one in asked]
    assert [rounded(one) for one in system(asked)] == [rounded(one) for one in alone]
    assert [rounded(one) for one in base(asked)] != [rounded(one) for one in alone]


def rounded(found: Any) -> Any:
    """Sums of padded and unpadded batches differ in their last bits."""
    return found if isinstance(found, str) else [round(float(x), 3) for x in (found if isinstance(found, tuple) else (found,))]


@torch.no_grad()
def test_an_experts_likelihood_is_that_of_its_model(tiny_base: Base, save_expert_of: Callable[..., Path]) -> None:
    row = file_row("one", save_expert_of("one"), tiny_base)
    ((logp, _),) = HarnessModel(tiny_base, row).loglikelihood(requests("loglikelihood", [("a = b", " yes")]))
    before, whole = tiny_base.codec.prompt("a = b"), tiny_base.codec.prompt("a = b yes")
    with row.route(["x"])[0].within():
        table = tiny_base.model(torch.tensor([whole])).logits[0].log_softmax(-1)
    assert logp == pytest.approx(sum(table[i - 1, whole[i]].item() for i in range(len(before), len(whole))), rel=1e-5)


def test_settings_that_the_sampler_has_not_are_refused(ours: HarnessModel) -> None:
    with pytest.raises(UserError, match="cannot generate with top_p=0.9"):
        sampling_of({"top_p": 0.9}, 1)
    with pytest.raises(UserError, match="max_gen_toks=600 leaves no room"):
        ours.generate_until(requests("generate_until", [("a", {"max_gen_toks": 600})]))
    assert sampling_of({"do_sample": True, "temperature": 0.5}, 1).temperature == 0.5
    assert sampling_of({"do_sample": False, "temperature": 0.5}, 1).temperature == 0.0


def test_the_first_stop_text_ends_an_answer() -> None:
    assert cut("a. b\nc", ["\n", ". "]) == "a"
    assert cut("a. b", "b") == "a. "
    assert cut("abc", ["", "x"]) == "abc"
