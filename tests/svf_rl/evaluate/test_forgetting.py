"""The figures of forgetting on tables worked out by hand."""

import pytest

from svf_rl.evaluate.forgetting import Transfer, transfer


def test_a_table_by_hand() -> None:
    """Task 1 goes 0.9, 0.95, 0.5; task 2 goes 0.35 unlearnt, 0.8, 0.7; task 3 0.1, 0.15 unlearnt, 0.6."""
    table = [[0.2, 0.3, 0.1], [0.9, 0.35, 0.1], [0.95, 0.8, 0.15], [0.5, 0.7, 0.6]]
    found = transfer(table)
    assert found.average_accuracy == pytest.approx((0.5 + 0.7 + 0.6) / 3)
    assert found.backward_transfer == pytest.approx(((0.5 - 0.9) + (0.7 - 0.8)) / 2)
    assert found.forgetting == pytest.approx(((0.95 - 0.5) + (0.8 - 0.7)) / 2)
    assert found.forward_transfer == pytest.approx(((0.35 - 0.3) + (0.15 - 0.1)) / 2)


def test_a_learner_that_touches_nothing_else_forgets_nothing() -> None:
    table = [[0.2, 0.2], [1.0, 0.2], [1.0, 1.0]]
    assert transfer(table) == Transfer(1.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("table", [[[0.1], [0.2]], [[0.1, 0.2], [0.3, 0.4]], [[0.1, 0.2], [0.3], [0.4, 0.5]], []])
def test_other_shapes_are_refused(table: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="at least two tasks"):
        transfer(table)
