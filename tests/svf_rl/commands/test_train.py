"""A run from the command line: what it leaves, how it resumes after every kind of end, and what it refuses."""

import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import gymnasium
import pytest
import scipy.stats
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from svf_rl import cli
from svf_rl.adapters import open_adapter
from svf_rl.base.load import Base, BaseConfig, load_base
from svf_rl.commands import folders, train
from svf_rl.evaluate.compare import answers, right
from svf_rl.files import read_tensors
from svf_rl.learn import trainer
from svf_rl.learn.tracking import METRICS, Tracker, read_rows
from svf_rl.rollout.sampler import Sampling

ROOT = Path(__file__).parents[3]
FEW = "algo.steps=3 algo.prompts=2 algo.group=2 algo.eval_every=1 algo.learning_rate=0.05 valid_size=4 test_size=8".split()
MATH = ["env=math", *FEW, "seed=1"]
FILES = set("config.yaml metrics.jsonl samples.jsonl checkpoint.safetensors expert.safetensors curve.png summary.json".split())


@pytest.fixture(scope="module")
def letter(architecture_folders: dict[str, Path]) -> list[str]:
    """Words of a run that takes a moment: a random base of two layers, rewarded for beginning with a letter."""
    return [
        f"base={architecture_folders['llama']}",
        "env.id=toys:toys/Letter-v0",
        "env.name=letter",
        "env=math",
        "env.max_tokens=3",
        *FEW,
    ]


@pytest.fixture(scope="module")
def letter_whole(letter: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a run without interruption."""
    folder = tmp_path_factory.mktemp("letter") / "whole"
    assert cli.main(["train", *letter, f"run_dir={folder}"]) == 0
    return folder


def trajectory(folder: Path) -> tuple[Any, ...]:
    """All that a run computed: tensors of expert and checkpoint, every figure but times, every sample, the result."""
    expert, about = read_tensors(folder / "expert.safetensors")
    state, _ = read_tensors(folder / "checkpoint.safetensors")
    tensors = {name: tensor.tolist() for name, tensor in (expert | state).items()}
    timed = {"seconds", "tokens_per_second", "training_seconds", "peak_memory"}
    rows = [{k: v for k, v in row.items() if k not in timed} for row in read_rows(folder / "metrics.jsonl")]
    summary = {k: v for k, v in json.loads((folder / "summary.json").read_text()).items() if k not in timed | {"expert_bytes"}}
    return tensors, rows, read_rows(folder / "samples.jsonl"), summary, about["metrics"]


# ---- one run of the embedded base, looked at from all sides


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of an uninterrupted run, and what it printed."""
    folder, handler = tmp_path_factory.mktemp("runs") / "whole", signal.getsignal(signal.SIGTERM)
    assert cli.main(["train", *MATH, f"run_dir={folder}"]) == 0
    yield folder
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def summary(whole: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((whole / "summary.json").read_text())
    return content


@pytest.fixture(scope="module")
def embedded() -> Base:
    return load_base(BaseConfig())


def test_a_run_leaves_these_files(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert names == FILES | events
    assert len(events) == 1
    explained = (ROOT / "runs" / "README.md").read_text()
    assert all(f"`{name}`" in explained for name in FILES)


def test_the_settings_are_resolved(whole: Path) -> None:
    stored = yaml.safe_load((whole / "config.yaml").read_text())
    assert (stored["seed"], stored["algo"]["steps"], stored["base"]["path"]) == (1, 3, "embedded")
    assert "???" not in (whole / "config.yaml").read_text()


def test_every_step_has_every_figure(whole: Path) -> None:
    rows = read_rows(whole / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    wanted = {"reward", "kl", "entropy", "gradient_norm", "z_mean", "z_move", "stop_share", "tokens_per_second", "valid_accuracy"}
    for row in rows:
        assert wanted <= row.keys() <= METRICS.keys() | {"step", "verdicts"}
        assert all(math.isfinite(row[key]) for key in row.keys() - {"verdicts"})
        assert sum(row["verdicts"].values()) == 4
    assert rows[-1]["z_move"] > 0


def test_tensorboard_reads_the_same_figures(whole: Path) -> None:
    events = EventAccumulator(str(whole))
    events.Reload()
    rows = read_rows(whole / "metrics.jsonl")
    assert set(events.Tags()["scalars"]) == rows[0].keys() - {"step", "verdicts"}
    for key in events.Tags()["scalars"]:
        found = [(event.step, event.value) for event in events.Scalars(key)]
        assert found == [(row["step"], pytest.approx(row[key], rel=1e-6)) for row in rows], key
    assert events.Tags()["tensors"] == ["sample/text_summary"]
    assert b"Answer:" in events.Tensors("sample/text_summary")[0].tensor_proto.string_val[0]


def test_samples_are_questions_and_answers(whole: Path) -> None:
    rows = read_rows(whole / "samples.jsonl")
    assert [row["step"] for row in rows] == [0, 0, 1, 1, 2, 2]
    assert all(row.keys() >= {"prompt", "answer", "reward", "verdict"} for row in rows)
    assert all(row["prompt"].startswith("Question:") for row in rows)


def test_the_curve_is_a_picture(whole: Path) -> None:
    """Every chunk of the PNG has the checksum it claims, and the last is the end."""
    content = (whole / "curve.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = [], 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunk = content[at + 4 : at + 8 + length]
        assert struct.unpack(">I", content[at + 8 + length : at + 12 + length]) == (zlib.crc32(chunk),)
        chunks.append(chunk[:4])
        at += 12 + length
    assert (chunks[0], chunks[-1]) == (b"IHDR", b"IEND")


def test_the_expert_says_where_it_comes_from(whole: Path, summary: dict[str, Any], embedded: Base) -> None:
    _, about = open_adapter(whole / "expert.safetensors", embedded)
    assert (about["base"], about["fingerprint"]) == ("embedded", embedded.fingerprint)
    assert (about["environment"], about["revision"]) == ("envs:svf/Math-v0", folders.revision())
    assert about["command"].split() == ["svf-rl", "train", *MATH, f"run_dir={whole}"]
    assert about["metrics"].items() >= {key: summary[key] for key in ("base_accuracy", "expert_accuracy", "n_test")}.items()
    progress = json.loads(read_tensors(whole / "checkpoint.safetensors")[1]["progress"])
    assert about["metrics"]["valid_gain"] == progress["best"] - progress["base_valid"]


def test_the_summary_is_right(whole: Path, summary: dict[str, Any], embedded: Base) -> None:
    """Its figures against the files, against a new evaluation of the expert file, and against scipy."""
    adapter, _ = open_adapter(whole / "expert.safetensors", embedded)
    env = gymnasium.make("envs:svf/Math-v0", disable_env_checker=True)
    before = [right(e) for e in answers(embedded, env, "test", 8, Sampling(64, 0.0)) if e is not None]
    adapter.install()
    after = [right(e) for e in answers(embedded, env, "test", 8, Sampling(64, 0.0)) if e is not None]
    adapter.uninstall()
    differences = [a - b for a, b in zip(after, before, strict=True)]
    interval = scipy.stats.ttest_1samp(differences, 0).confidence_interval() if len(set(differences)) > 1 else [differences[0]] * 2
    trained = sum(p.numel() for p in adapter.parameters().values())
    expected = {
        "env": "math", "base": "embedded", "adapter": "svf", "seed": 1, "steps": 3, "trained_parameters": trained,
        "expert_bytes": (whole / "expert.safetensors").stat().st_size, "base_accuracy": sum(before) / 8,
        "expert_accuracy": sum(after) / 8, "n_test": 8, "difference": sum(differences) / 8,
        "difference_ci95": pytest.approx(list(interval)), "base_unchanged": True, "skipped_steps": 0, "faults": 0,
    }  # fmt: skip
    assert {key: summary[key] for key in expected} == expected
    assert 0 < summary["training_seconds"] <= summary["seconds"]
    assert 50e6 < summary["peak_memory"] < 50e9
    explained = (ROOT / "runs" / "README.md").read_text()
    assert [key for key in summary if f"`{key}`" not in explained] == []


def test_the_best_step_is_kept(whole: Path, summary: dict[str, Any]) -> None:
    """The expert is the state of the best validation, the base's own included: the first of equals."""
    about = json.loads(read_tensors(whole / "checkpoint.safetensors")[1]["progress"])
    scores = [about["base_valid"]] + [row["valid_accuracy"] for row in read_rows(whole / "metrics.jsonl")]
    assert summary["best_step"] == scores.index(max(scores))
    stored, z = (read_tensors(whole / f"{name}.safetensors")[0] for name in ("checkpoint", "expert"))
    best = {f"z.{name.removeprefix('best.')}": tensor for name, tensor in stored.items() if name.startswith("best.")}
    assert best.keys() == z.keys()
    assert all(torch.equal(best[name], z[name]) for name in z)


# ---- interruptions


class Runner:
    """`python train.py` in a process and a folder of its own."""

    def __init__(self, folder: Path, cache: Path, *words: str) -> None:
        environment = {**os.environ, "SVF_RL_CACHE": str(cache), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / "train.py"), *words]
        self.log = folder / "metrics.jsonl"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, cwd=folder.parent, env=environment, text=True, **pipes)  # type: ignore[call-overload]

    def after(self, steps: int) -> None:
        """Wait until so many steps are recorded."""
        while len(read_rows(self.log)) < steps:
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.005)

    def end(self, how: int) -> tuple[int, str, str]:
        self.process.send_signal(how)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.mark.parametrize(
    ("how", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),  # on a fast machine the run may end before it is interrupted
        pytest.param(signal.SIGTERM, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_end(
    whole: Path, tmp_path: Path, factor_cache: Path, svf_rl: Callable[..., Any], how: int, code: int
) -> None:
    """From another folder, in another process, interrupted after a step: the same expert, bit for bit."""
    runner = Runner(tmp_path / "cut", factor_cache, *MATH, "run_dir=cut")
    runner.after(1)
    returned, out, err = runner.end(how)
    assert returned == code
    if code == 130:
        resume = out.split("stopped; go on with: svf-rl ")[1].split()
        assert err.splitlines()[-1] == "svf-rl: interrupted"
        assert "Traceback" not in err
    else:
        resume = ["train", *MATH, "run_dir=cut", "resume=true"]
    assert not (tmp_path / "cut" / "summary.json").exists()
    assert svf_rl(*resume).code == 0
    assert trajectory(tmp_path / "cut") == trajectory(whole)
    expert, cut = ((folder / "expert.safetensors").read_bytes() for folder in (whole, tmp_path / "cut"))
    size = 4 * 5376
    assert expert[-size:] == cut[-size:]


MOMENTS = [
    (folders, "open_folder"), (Tracker, "start"), (trainer, "validate"), (trainer, "sample_groups"), (trainer, "update"),
    (trainer, "keep_if_best"), (Tracker, "log"), (trainer, "save_checkpoint"), (train, "test"), (train, "save_adapter"),
    (train, "plot_curve"), (train, "summarise"), (train, "show"),
]  # fmt: skip


@pytest.mark.parametrize(("owner", "name"), MOMENTS, ids=[name for _, name in MOMENTS])
@pytest.mark.parametrize("when", ["before", pytest.param("after", marks=pytest.mark.slow)])
def test_an_interruption_at_any_moment_loses_nothing(
    svf_rl: Callable[..., Any],
    letter: list[str],
    letter_whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    when: str,
) -> None:
    """Ctrl-C just before or after every stage of a run, at its second call where there is one."""
    real, calls = getattr(owner, name), []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        last = len(calls) == (2 if owner is trainer or name == "log" else 1)
        if last and when == "before":
            raise KeyboardInterrupt
        result = real(*args, **kwargs)
        if last:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        done = svf_rl("train", *letter, "run_dir=cut")
    assert done.code == 130
    if (Path("cut") / "config.yaml").exists():
        words = done.out.split("stopped; go on with: svf-rl ")[1].splitlines()[0].split()
    else:
        words = ["train", *letter, "run_dir=cut"]
    assert svf_rl(*words).code == 0
    assert trajectory(Path("cut")) == trajectory(letter_whole)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_amid_the_records_waits_for_their_end(
    svf_rl: Callable[..., Any], letter: list[str], monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    """TensorBoard's queue does not survive an exception in its middle: the exit would hang."""
    real = Queue.put

    def put(self: Any, item: Any, *rest: Any) -> None:
        if (Path("run") / "metrics.jsonl").stat().st_size:
            signal.raise_signal(kind)
        real(self, item, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Queue, "put", put)
        assert svf_rl("train", *letter, "run_dir=run").code == 130
    events = EventAccumulator("run").Reload()
    assert [row["step"] for row in read_rows(Path("run/metrics.jsonl"))] == [0]
    assert all([e.step for e in events.Scalars(key)] == [0] for key in events.Tags()["scalars"])
    assert events.Tags()["tensors"] == ["sample/text_summary"]


def test_a_full_disk_stops_the_run_and_it_goes_on_later(
    svf_rl: Callable[..., Any], letter: list[str], letter_whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, room = os.fsync, iter(range(12))

    def full(descriptor: int) -> None:
        if next(room, None) is None:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        done = svf_rl("train", *letter, "run_dir=cut")
    assert done.code == 1
    assert done.err.splitlines()[-1] == "svf-rl: the run stopped: [Errno 28] No space left on device"
    assert [path.name for path in Path("cut").iterdir() if path.name.startswith(".")] == []
    assert svf_rl("train", *letter, "run_dir=cut", "resume=true").code == 0
    assert trajectory(Path("cut")) == trajectory(letter_whole)


# ---- runs that fail


def test_too_many_steps_that_are_not_finite(svf_rl: Callable[..., Any], letter: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.reinforce, "loss", lambda logp, *rest: logp.sum() * math.nan)
    done = svf_rl("train", *letter, "run_dir=run", "algo.max_bad_steps=1", "algo.prompts=16")
    assert done.code == 1
    assert "not finite in 1 steps in a row; lower the learning rate" in done.err.splitlines()[-1]


def test_an_environment_that_fails(svf_rl: Callable[..., Any], letter: list[str]) -> None:
    done = svf_rl("train", *letter, "env.id=toys:toys/Unscorable-v0", "run_dir=run")
    assert done.code == 1
    assert "episodes were lost because the environment failed" in done.err.splitlines()[-1]


class Asks(gymnasium.Env[str, str]):
    """Always the same question."""

    observation_space = action_space = gymnasium.spaces.Text(10)

    def __init__(self, question: str) -> None:
        self.question = question

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        return self.question, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "", 0.0, True, False, {}


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("", "expected a question of at least one character, found an empty one: question 0 of "),
        ("x" * 2000, "a prompt of 2001 tokens leaves no room in the base's context of 512; shorten it"),
    ],
)
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_prompts_that_no_base_can_answer(svf_rl: Callable[..., Any], command: str, question: str, message: str) -> None:
    gymnasium.register("toys/Asks-v0", entry_point=Asks, kwargs={"question": question})
    try:
        assert svf_rl(command, "env=math", "env.id=toys/Asks-v0").mistake.startswith(message)
    finally:
        del gymnasium.registry["toys/Asks-v0"]


# ---- folders


def test_a_folder_that_holds_a_run_is_not_overwritten(svf_rl: Callable[..., Any], letter: list[str]) -> None:
    assert svf_rl("train", *letter, "run_dir=run").code == 0
    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    mistake = svf_rl("train", *letter, "run_dir=run").mistake
    assert mistake == "'run' already holds a run; add resume=true to go on with it, or choose another run_dir"
    other = svf_rl("train", *letter, "run_dir=run", "resume=true", "algo.kl=0.5", "seed=9").mistake
    assert "algo.kl (0.01, now 0.5)" in other
    assert "seed (0, now 9)" in other
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before


@pytest.mark.parametrize("damage", ["cut", "other", "text"])
def test_a_damaged_checkpoint_is_named_and_left_alone(svf_rl: Callable[..., Any], letter: list[str], damage: str) -> None:
    assert svf_rl("train", *letter, "run_dir=run").code == 0
    path = Path("run/checkpoint.safetensors")
    content = {"cut": path.read_bytes()[:-9], "other": Path("run/expert.safetensors").read_bytes(), "text": b"state"}[damage]
    path.write_bytes(content)
    rows = Path("run/metrics.jsonl").read_bytes()
    mistake = svf_rl("train", *letter, "run_dir=run", "resume=true").mistake
    assert mistake.startswith("the checkpoint 'run/checkpoint.safetensors' cannot be resumed")
    assert mistake.endswith("start again in another run_dir")
    assert (path.read_bytes(), Path("run/metrics.jsonl").read_bytes()) == (content, rows)


def test_a_run_of_other_weights_is_not_resumed(
    svf_rl: Callable[..., Any], letter: list[str], architecture_folders: dict[str, Path]
) -> None:
    """The base's folder has the same name, but what is in it has changed."""
    Path("base").symlink_to(architecture_folders["llama"])
    words = ["base=./base", *letter[1:], "run_dir=run"]
    assert svf_rl("train", *words).code == 0
    Path("base").unlink()
    Path("base").symlink_to(architecture_folders["mistral"])
    assert "was trained on other base weights" in svf_rl("train", *words, "resume=true").mistake


def test_a_run_that_is_done_can_be_resumed(svf_rl: Callable[..., Any], letter: list[str]) -> None:
    assert svf_rl("train", *letter, "run_dir=run").code == 0
    before = trajectory(Path("run"))
    assert svf_rl("train", *letter, "run_dir=run", "resume=true").code == 0
    assert trajectory(Path("run")) == before
    config = Path("run/config.yaml")
    older = "".join(line for line in config.read_text().splitlines(keepends=True) if "label_weight" not in line)
    assert older != config.read_text()
    config.write_text(older)  # of a version that did not have the setting
    assert svf_rl("train", *letter, "run_dir=run", "resume=true").code == 0


def test_a_folder_that_cannot_be_written(svf_rl: Callable[..., Any], letter: list[str]) -> None:
    Path("file").write_text("mine")
    assert "(Not a directory); choose another run_dir" in svf_rl("train", *letter, "run_dir=file/run").mistake
    assert svf_rl("train", *letter, "run_dir=file").mistake.endswith("choose another run_dir")
    assert Path("file").read_text() == "mine"


def test_several_seeds_end_in_a_table(svf_rl: Callable[..., Any], letter: list[str]) -> None:
    done = svf_rl("train", *letter, "seed=3,5", "run_dir=runs")
    assert done.code == 0
    rows = [line for line in done.out.splitlines() if line.startswith(("| 3 |", "| 5 |"))]
    gains = []
    for row, seed in zip(rows, (3, 5), strict=True):
        found = json.loads(Path(f"runs/seed{seed}/summary.json").read_text())
        low, high = (f"{100 * x:+.1f}" for x in found["difference_ci95"])
        assert f"| {100 * found['difference']:+.1f} [{low}, {high}] " in row
        assert f"| {100 * found['base_accuracy']:.1f} | {100 * found['expert_accuracy']:.1f} " in row
        assert f"| {found['trained_parameters']} | {found['expert_bytes']} |" in row
        gains.append(100 * found["difference"])
    assert f"mean gain {sum(gains) / 2:+.1f} points" in done.out
    assert "'runs/seed5' already holds a run" in svf_rl("train", *letter, "seed=4,5", "run_dir=runs").mistake
    assert not Path("runs/seed4").exists()  # all folders are checked before the first run


def test_one_of_several_seeds_is_what_it_is_alone(svf_rl: Callable[..., Any], letter: list[str]) -> None:
    assert svf_rl("train", *letter, "seed=3,5", "run_dir=both").code == 0
    assert svf_rl("train", *letter, "seed=5", "run_dir=alone").code == 0
    assert trajectory(Path("both/seed5")) == trajectory(Path("alone"))


def test_without_run_dir_the_latest_is_linked(svf_rl: Callable[..., Any], letter: list[str]) -> None:
    for seed in (0, 1):
        done = svf_rl("train", *letter, f"seed={seed}")
        assert done.code == 0
        latest = Path("runs/letter/latest")
        assert latest.is_symlink()
        assert latest.resolve().name.endswith(f"-seed{seed}")
        assert json.loads((latest / "summary.json").read_text())["seed"] == seed
    assert sorted(path.name for path in Path().iterdir()) == ["runs"]
    assert len([path for path in Path("runs/letter").iterdir() if not path.is_symlink()]) == 2
