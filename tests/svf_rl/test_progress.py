"""The live line: what it shows, that it can be silent, and that it never changes what it counts."""

import pytest

from svf_rl.progress import Progress


def test_it_yields_what_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(Progress().over(["a", "b"], "letters")) == ["a", "b"]
    assert list(Progress().steps(3, 6, "steps")) == [3, 4, 5]
    out, err = capsys.readouterr()
    assert out == ""  # standard output is for results
    assert "letters: 100%" in err
    assert "2/2" in err


def test_a_resumed_run_starts_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    steps = Progress().steps(3, 6, "steps")
    next(steps)
    assert "3/6" in capsys.readouterr().err
    steps.close()


def test_the_latest_figures_are_on_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress()
    for step in bar.steps(0, 2, "steps"):
        bar.show(reward=f"{step}.50", tokens_per_second=7)
    assert "reward=1.50, tokens per second=7" in capsys.readouterr().err


def test_a_line_of_its_own_leaves_the_bar_alone(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress()
    for _ in bar.steps(0, 2, "steps"):
        bar.say("a word")
    out, err = capsys.readouterr()
    assert (out, err.count("a word\n")) == ("", 2)
    assert "100%" in err


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress(quiet=True)
    for _ in bar.over("abc", "letters"):
        bar.show(reward=1)
        bar.say("a word")
    assert capsys.readouterr() == ("", "")


def test_figures_without_a_bar_are_no_error() -> None:
    bar = Progress(quiet=True)
    bar.show(reward=1)
    for _ in bar.steps(0, 2, "steps"):
        break
    bar.show(reward=1)


def test_one_bar_after_another(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress()
    assert [list(bar.steps(0, n, f"bar{n}")) for n in (2, 3)] == [[0, 1], [0, 1, 2]]
    assert "bar3: 100%" in capsys.readouterr().err
