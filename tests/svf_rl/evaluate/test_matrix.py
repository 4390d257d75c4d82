"""Published figures against the same computed from the answers by hand."""

import pytest

from svf_rl.evaluate.cells import Answer, Cell, Column, Decoding
from svf_rl.evaluate.matrix import figures, full, short, to_csv, to_markdown
from svf_rl.evaluate.rows import Row
from svf_rl.evaluate.stats import paired_difference, paired_p, proportion

NAMES = {"base": "", "expert": "envs:a", "other": "envs:b"}
ROWS = [Row(name, name, lambda prompts: [], environment) for name, environment in NAMES.items()]
COLUMNS = [Column(name, None, f"envs:{name}", 1, "test", ()) for name in "ac"]


def cell(row: str, column: str, rewards: str) -> Cell:
    """ "1" and "0" by question; "-" was lost."""
    kept = [Answer(i, float(r), "", "q", "t", [1, 2], [0, 1]) for i, r in enumerate(rewards) if r != "-"]
    return Cell(row, column, tuple(kept), kl=0.1)


def test_differences_are_paired_and_corrected_for_all_comparisons() -> None:
    base, expert = "0" * 8 + "1" * 2 + "-0", "1" * 8 + "10" + "1-"
    cells = {(row.name, column.name): cell(row.name, column.name, base) for row in ROWS for column in COLUMNS}
    cells["expert", "a"] = cell("expert", "a", expert)
    found = {(f.row, f.column): f for f in figures(cells, ROWS, COLUMNS, Decoding(), 1)}
    before, after = [0.0] * 8 + [1.0, 1.0], [1.0] * 8 + [1.0, 0.0]
    f = found["expert", "a"]
    assert (f.n, f.value, f.low, f.high) == (10, *proportion(9, 10))
    assert (f.difference, f.difference_low, f.difference_high) == paired_difference(before, after)
    assert f.p == paired_p(before, after)
    assert f.p_holm == pytest.approx(min(1.0, 4 * paired_p(before, after)))  # two rows, two columns
    assert found["base", "a"].difference is None


def test_the_oracle_is_the_expert_of_the_environment_else_the_best_single_one() -> None:
    cells = {(row.name, column.name): cell(row.name, column.name, "0011") for row in ROWS for column in COLUMNS}
    cells["expert", "a"] = cell("expert", "a", "1111")
    cells["expert", "c"] = cell("expert", "c", "1110")
    found = {f.column: f for f in figures(cells, ROWS, COLUMNS, Decoding(), 1) if f.row == "oracle"}
    assert (found["a"].value, found["a"].parts) == (1.0, {"expert": 4})
    assert (found["c"].value, found["c"].parts) == (0.75, {"expert": 4})
    cells["expert", "c"] = cell("expert", "c", "0001")
    found = {f.column: f for f in figures(cells, ROWS, COLUMNS, Decoding(), 1) if f.row == "oracle"}
    assert (found["c"].value, found["c"].parts) == (0.5, {"base": 4})  # of equals the first: the base


@pytest.mark.parametrize(
    ("gains", "chosen"), [((0.1, 0.3), "two"), ((0.3, 0.1), "one"), ((0.2, 0.2), "one"), ((-1.0, -2.0), "one")]
)
def test_of_several_experts_the_oracle_takes_the_best_on_validation(gains: tuple[float, float], chosen: str) -> None:
    """Whatever they score on the test: that would be to choose with the answers in view."""
    rows = [
        ROWS[0],
        *(Row(name, name, lambda prompts: [], "envs:a", gain) for name, gain in zip(("one", "two"), gains, strict=True)),
    ]
    rewards = {"base": "0000", "one": "0001", "two": "0011"}
    cells = {(name, "a"): cell(name, "a", own) for name, own in rewards.items()}
    (found,) = [f for f in figures(cells, rows, COLUMNS[:1], Decoding(), 1) if f.row == "oracle"]
    assert found.parts == {chosen: 4}


def test_of_samples_the_mean_and_pass_at_k() -> None:
    answers = [Answer(q, float(r), "", "", "", [1], [1]) for q, rewards in enumerate(("1100", "0000")) for r in rewards]
    cells = {("base", "a"): Cell("base", "a", tuple(answers))}
    (f,) = figures(cells, ROWS[:1], COLUMNS[:1], Decoding(1.0, 4), 2)
    assert f.value == 0.25
    assert f.pass_at_k == pytest.approx((1 - 1 / 6) / 2)  # of the six pairs of 1100 one has none right


def test_losses_are_weighed_by_tokens() -> None:
    cells = {
        (row, "human"): Cell(row, "human", nats=nats, tokens=(10, 30))
        for row, nats in (("base", (20.0, 90.0)), ("expert", (22.0, 92.0)))
    }
    column = Column("human", None, "", 0, "held-out", ("a", "b"))
    base, expert, *_ = figures(cells, ROWS[:2], [column], Decoding(), 1)
    assert (base.value, expert.value, expert.difference) == pytest.approx((110 / 40, 114 / 40, 4 / 40))


def test_the_table_as_text() -> None:
    cells = {(row.name, "a"): cell(row.name, "a", "0" * 10 if row.name == "base" else "1" * 10) for row in ROWS}
    found = figures(cells, ROWS, COLUMNS[:1], Decoding(), 1)
    assert "| expert | 100.0 +100.0* |" in to_markdown(found, short)
    assert "| base | 0.0 [0.0, 27.8] |" in to_markdown(found, full)
    assert len(to_csv(found).splitlines()) == 1 + 4
