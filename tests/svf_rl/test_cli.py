"""What was typed reaches one command; a mistake is one line and exit code 2, a failed run 1, an interruption 130."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svf_rl.cli import COMMANDS
from svf_rl.commands import evaluate
from svf_rl.config import SCHEMAS, EvaluateConfig, groups_of, known_keys
from svf_rl.errors import BaseError, Diverged, ExpertError, FaultyRun, UserError

MISTAKES = [
    (["trian", "env=math"], "unknown command 'trian'; expected one of train"),
    (["--version"], "unknown command '--version'"),
    (["train", "algo.step=3"], "unknown setting 'algo.step'; did you mean algo.steps"),
    (["train", "env=mth"], "unknown env 'mth'; did you mean math"),
    (["train", "env"], "expected key=value, found 'env'"),
    (["train", "algo.steps=many"], "algo.steps: Value 'many'"),
    (["train", "algo.steps=0"], "algo.steps must be at least 1, not 0"),
    (["train", "algo.baseline=low"], "algo.baseline: Invalid value 'low', expected one of"),
    (["train", "seed=0,one"], "seed: Value 'one'"),
    (["train", "seed=0,,1"], "seed: Value ''"),
    (["train", "seed=1.5"], "seed: Value '1.5'"),
    (["train", "base=./missing"], "the base folder './missing' does not exist"),
    (["train", "base=a\nb"], "the base folder 'a\\nb' does not exist"),
    (["train", "base.dtype=int4"], "base.dtype must be one of auto"),
    (["train", "base.device=abacus"], "base.device='abacus' cannot be used here"),
    (["train", "env=math", "env.id=envs:svf/Nothing-v0"], "cannot make the environment 'envs:svf/Nothing-v0'"),
    (["train", "resume=true"], "resume=true needs the folder of the run"),
    (["train", "run_dir=new", "resume=true"], "nothing to resume in 'new'"),
    (["train", "run_dir=/proc/none/new", "algo.steps=1"], "cannot write to the run folder '/proc/none/new'"),
    (["evaluate", "expert=missing.safetensors"], "cannot read the expert 'missing.safetensors'"),
    (["evaluate", "expert=."], "cannot read the expert '.'"),
    (["evaluate", "splt=test"], "unknown setting 'splt'; did you mean split"),
    (["evaluate", "split=tets"], "split: Invalid value 'tets', expected one of"),
    (["pretrain", "run_dir=/proc/none/new"], "cannot write to the run folder '/proc/none/new'"),
    (["card", "size=0"], "size must be at least 1, not 0"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(svf_rl: Callable[..., Any], words: list[str], message: str) -> None:
    assert svf_rl(*words).mistake.startswith(message)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("say less"), 2, "svf-rl: say less"),
        (BaseError("no base"), 2, "svf-rl: no base"),
        (ExpertError("no expert"), 2, "svf-rl: no expert"),
        (Diverged("not finite"), 1, "svf-rl: the run stopped: not finite"),
        (FaultyRun("all lost"), 1, "svf-rl: the run stopped: all lost"),
        (OSError(28, "No space left on device"), 1, "svf-rl: the run stopped: [Errno 28] No space left on device"),
        (KeyboardInterrupt(), 130, "svf-rl: interrupted"),
    ],
)
def test_what_goes_wrong_decides_the_exit_code(
    svf_rl: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(evaluate, "run", fail)
    done = svf_rl("evaluate")
    assert (done.code, done.out, done.err.strip()) == (code, "", line)


def test_a_bug_is_not_hidden(svf_rl: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "run", lambda configs, command: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        svf_rl("evaluate")


def test_sigterm_interrupts_like_ctrl_c(svf_rl: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "run", lambda configs, command: os.kill(os.getpid(), signal.SIGTERM))
    assert svf_rl("evaluate").code == 130


def test_a_command_gets_its_settings_and_what_was_typed(svf_rl: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[Any] = []
    monkeypatch.setattr(evaluate, "run", lambda configs, command: got.extend([configs, command]))
    assert svf_rl("evaluate", "env=code", "seed=3,4", "size=7").code == 0
    assert [(type(c), c.env.name, c.seed, c.size) for c in got[0]] == [(EvaluateConfig, "code", seed, 7) for seed in (3, 4)]
    assert got[1] == ["svf-rl", "evaluate", "env=code", "seed=3,4", "size=7"]


def test_the_words_are_those_of_the_command_line(svf_rl: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from svf_rl.cli import main

    monkeypatch.setattr(sys, "argv", ["svf-rl", "nothing"])
    assert main() == 2


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"], ["help"]])
def test_help_names_every_command(svf_rl: Callable[..., Any], words: list[str]) -> None:
    done = svf_rl(*words)
    assert (done.code, done.err) == (0, "")
    for name, what in COMMANDS.items():
        assert f"svf-rl {name}" in done.out
        assert what in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_names_every_setting_and_choice(svf_rl: Callable[..., Any], command: str) -> None:
    done = svf_rl(command, "env=nonsense", "--help")
    assert (done.code, done.err) == (0, "")
    for key in known_keys(SCHEMAS[command]):
        if key.split(".")[0] != "adapter":  # has the keys of whichever was chosen
            assert f"{key.split('.')[-1]}:" in done.out, key
    for group, names in groups_of(command).items():
        for name in names:
            assert f"[{group}={name}]" in done.out


def test_commands_and_schemas_are_the_same() -> None:
    assert set(COMMANDS) == set(SCHEMAS)


def test_a_wrong_command_is_refused_without_loading_torch(tmp_path: Path) -> None:
    code = "import sys; from svf_rl.cli import main; print(main(['trian']), main(['help']) or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "2 False", done
