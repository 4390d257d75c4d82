"""What a run leaves behind: every figure explained, every row whole, nothing twice."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from svf_rl import files
from svf_rl.learn.tracking import METRICS, Tracker, plot_curve, read_rows
from svf_rl.learn.trainer import Run, train
from svf_rl.progress import Progress
from svf_rl.types import Episode

FIGURES = {"loss": 0.5, "kl": 0.1, "entropy": 2.0, "gradient_norm": 1.0, "groups_with_signal": 1.0, "mismatch": 0.0, "seconds": 2.0}

LOGGED_BY_SVF = set(
    "reward valid_accuracy loss kl entropy gradient_norm groups_with_signal mismatch z_mean z_move z_max_log stop_share "
    "tokens_per_answer tokens_per_second seconds".split()
)


def episode(text: str = "4", reward: float = 1.0, tokens: int = 3, stop: str = "stop", verdict: str = "pass") -> Episode:
    return Episode([1] * (tokens + 2), [False] * 2 + [True] * tokens, [-0.1] * tokens, reward, verdict, stop, "2 + 2 =", text)


@pytest.fixture
def tracker(tmp_path: Path) -> Any:
    made = Tracker(tmp_path, Progress(quiet=True), lambda: {"z_mean": 1.25})
    made.start(0)
    yield made
    made.close()


def test_a_run_logs_exactly_what_is_explained(make_run: Callable[..., Run]) -> None:
    run = make_run(steps=2, eval_every=1)
    train(run)
    run.tracker.close()
    rows = read_rows(run.folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1]
    for row in rows:
        logged = set(row) - {"step", "verdicts"}
        assert LOGGED_BY_SVF <= logged <= set(METRICS)
    events = EventAccumulator(str(run.folder)).Reload()
    assert set(events.Tags()["scalars"]) == logged
    for name in logged:
        assert [(e.step, e.value) for e in events.Scalars(name)] == [(row["step"], pytest.approx(row[name])) for row in rows]
    assert events.Tags()["tensors"] == ["sample/text_summary"]
    assert all(len(text) > 20 for text in METRICS.values())


def test_a_figure_that_is_not_explained_is_refused(tracker: Tracker) -> None:
    with pytest.raises(KeyError, match="METRICS does not explain mood"):
        tracker.log(0, {**FIGURES, "mood": 1.0}, [[episode()]])
    assert read_rows(tracker.folder / "metrics.jsonl") == []


def test_figures_by_hand(tracker: Tracker) -> None:
    groups = [
        [episode(), episode(reward=0.0, tokens=5, stop="length", verdict="wrong")],
        [episode(reward=0.5, tokens=1, verdict="part")],
    ]
    tracker.log(4, FIGURES, groups)
    (row,) = read_rows(tracker.folder / "metrics.jsonl")
    assert row["step"] == 4
    assert row["reward"] == 0.5
    assert row["stop_share"] == pytest.approx(2 / 3)
    assert row["tokens_per_answer"] == 3
    assert row["tokens_per_second"] == 4.5
    assert row["verdicts"] == {"pass": 1, "wrong": 1, "part": 1}
    assert row["z_mean"] == 1.25  # the adapter's own figure


def test_samples_hold_two_questions_of_a_step(tracker: Tracker) -> None:
    tracker.log(0, FIGURES, [[episode("a"), episode("b")], [episode("c")], [episode("d")]])
    rows = read_rows(tracker.folder / "samples.jsonl")
    assert [(row["step"], row["prompt"], row["answer"], row["reward"], row["verdict"]) for row in rows] == [
        (0, "2 + 2 =", "a", 1.0, "pass"),
        (0, "2 + 2 =", "c", 1.0, "pass"),
    ]


@pytest.mark.parametrize(
    "text", ["two\nlines\r\n", "line\u2028and\u2029paragraph", "\x85\x0b\x0c\x1c\x1d\x1e", "\x00\ufffd é 中 🙂", '"}\\']
)
def test_any_text_survives_in_samples(text: str, tracker: Tracker) -> None:
    """Some characters end a line for str.splitlines, but not for JSON lines."""
    tracker.log(0, FIGURES, [[episode(text)]])
    tracker.log(1, FIGURES, [[episode("after")]])
    assert [row["answer"] for row in read_rows(tracker.folder / "samples.jsonl")] == [text, "after"]
    tracker.close()
    tracker.start(1)
    assert [row["answer"] for row in read_rows(tracker.folder / "samples.jsonl")] == [text]


def test_going_on_drops_the_rows_of_steps_that_are_done_again(tracker: Tracker) -> None:
    for step in range(5):
        tracker.log(step, FIGURES, [[episode()]])
    tracker.close()
    tracker.start(3)
    assert [row["step"] for row in read_rows(tracker.folder / "metrics.jsonl")] == [0, 1, 2]
    assert [row["step"] for row in read_rows(tracker.folder / "samples.jsonl")] == [0, 1, 2]
    for step in (3, 4):
        tracker.log(step, {**FIGURES, "loss": 9.0}, [[episode()]])
    tracker.close()
    assert [row["loss"] for row in read_rows(tracker.folder / "metrics.jsonl")] == [0.5] * 3 + [9.0] * 2
    events = EventAccumulator(str(tracker.folder)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 0.5), (1, 0.5), (2, 0.5), (3, 9.0), (4, 9.0)]


@pytest.mark.parametrize("cut", [1, 2, 10, 60])
def test_a_line_that_was_cut_short_is_left_out(cut: int, tracker: Tracker) -> None:
    for step in range(3):
        tracker.log(step, FIGURES, [[episode("é" * 40)]])
    tracker.close()
    for name in ("metrics.jsonl", "samples.jsonl"):
        path = tracker.folder / name
        path.write_bytes(path.read_bytes()[:-cut])
        assert [row["step"] for row in read_rows(path)] == ([0, 1, 2] if cut == 1 else [0, 1])  # 1: only the line's end is gone
    tracker.start(2)
    tracker.log(2, FIGURES, [[episode("again")]])
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert [row["step"] for row in read_rows(tracker.folder / name)] == [0, 1, 2]


def test_dropping_rows_never_leaves_a_half_file(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(3):
        tracker.log(step, FIGURES, [[episode()]])
    tracker.close()

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tracker.start(2)
    assert len(read_rows(tracker.folder / "metrics.jsonl")) == 3


def test_rows_are_plain_json_lines(tracker: Tracker) -> None:
    tracker.log(0, FIGURES, [[episode()]])
    tracker.log(1, FIGURES, [[episode()]])
    content = (tracker.folder / "metrics.jsonl").read_bytes()
    assert content.count(b"\n") == 2
    assert [json.loads(line)["step"] for line in content.splitlines()] == [0, 1]
    assert b"\r" not in content


def test_no_file_is_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_the_curve_is_drawn(tracker: Tracker) -> None:
    for step in range(6):
        figures = FIGURES | ({"valid_accuracy": 0.5} if step % 2 else {})
        tracker.log(step, figures, [[episode()]] if step != 3 else [])  # a step that lost everything leaves a gap
    plot_curve(tracker.folder, 0.25, "toy, seed 0")
    content = (tracker.folder / "curve.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) > 5000


def test_the_curve_of_a_run_without_steps_is_drawn(tmp_path: Path) -> None:
    plot_curve(tmp_path, 0.25, "toy, seed 0")
    assert (tmp_path / "curve.png").exists()


def test_a_folder_is_explained_file_by_file() -> None:
    """runs/README.md names everything that the tracker and the command write."""
    text = (Path(__file__).parents[3] / "runs" / "README.md").read_text()
    for (
        name
    ) in "config.yaml metrics.jsonl events samples.jsonl checkpoint.safetensors expert.safetensors curve.png summary.json".split():
        assert re.search(rf"`{re.escape(name)}", text), name
