"""The `svf-rl` command: reads what was typed, calls one command, and turns a mistake into one line and exit code 2.

Exit codes: 0 done, 1 the run failed, 2 a mistake in what was asked, 130 interrupted (Ctrl-C; a training run can be resumed).
"""

import importlib
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from svf_rl.errors import Diverged, FaultyRun, UserError

COMMANDS = {
    "train": "teach the base a task: an expert of a few kilobytes, and a held-out comparison",
    "evaluate": "score the base, or an expert, on an environment",
    "matrix": "score the base, experts, mixtures and dispatchers on every held-out test",
    "forgetting": "train tasks one after another, and measure what each way of learning forgets",
    "report": "one HTML page on runs, a matrix and forgetting",
    "table": "means over seeds of runs, matrices, compositions and forgetting, as Markdown",
    "harness": "run tasks of the lm-evaluation-harness on the base, an expert or a dispatched system",
    "generate": "answer a prompt with the experts that a dispatcher chooses, or with one adapter",
    "compose": "find a mixture of experts for a new task from a few of its questions",
    "experts": "list a folder of experts",
    "remove": "leave out one specialist of a trained adapter",
    "study": "run one of the studies: superposition of attention heads",
    "pretrain": "make the embedded base again, or a base of its shape from your own text",
    "card": "measure the embedded base and write its model card",
}

TEXTS = {"generate": "prompt", "experts": "experts"}  # what a word that is not key=value stands for


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    command, overrides = words[0], words[1:]
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if command not in COMMANDS:
            raise UserError(f"unknown command {command!r}; expected one of {', '.join(COMMANDS)}")
        if {"-h", "--help"} & set(overrides):
            print(command_help(command))
            return 0
        return _run(command, overrides)
    except UserError as error:
        print(f"svf-rl: {error}", file=sys.stderr)
        return 2
    except (Diverged, FaultyRun, OSError) as error:
        print(f"svf-rl: the run stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsvf-rl: interrupted", file=sys.stderr)
        return 130


def _run(command: str, overrides: Sequence[str]) -> int:
    from svf_rl.config import read_configs  # slow to import: after the checks that need no torch

    module: Any = importlib.import_module(f"svf_rl.commands.{command}")
    module.run(read_configs(command, [_setting(command, word) for word in overrides]), ["svf-rl", command, *overrides])
    return 0


def _setting(command: str, word: str) -> str:
    """A flag or a command's one text as key=value: --explain, "54 + 13 =", a folder."""
    if word.startswith("--") and "=" not in word:
        return f"{word[2:].replace('-', '_')}=true"
    if command in TEXTS and not re.match(r"[A-Za-z_][\w.]*=", word):
        return f"{TEXTS[command]}={word}"
    return word


def _interrupt(signum: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def usage() -> str:
    rows = "\n".join(f"  svf-rl {name:10} {what}" for name, what in COMMANDS.items())
    return f"""Teach a frozen language model new skills in kilobytes.

{rows}

Settings are given as key=value, for example:
  svf-rl train env=math                         the embedded base, a few minutes on two cores
  svf-rl train env=math seed=0,1,2,3,4          five experts and the table of their gains
  svf-rl train env=math base=Qwen/Qwen2.5-0.5B  a base from the Hugging Face hub, or a local folder
  svf-rl evaluate env=math expert=runs/math/latest/expert.safetensors

svf-rl COMMAND --help lists the settings of a command."""


def command_help(command: str) -> str:
    """The command's configuration files with their comments: every setting, its default and what it does."""
    from svf_rl.config import configs_folder, groups_of

    parts = [f"svf-rl {command}: {COMMANDS[command]}\n"]
    path = configs_folder() / f"{command}.yaml"
    if path.exists():
        parts.append(path.read_text())
    for group, names in groups_of(command).items():
        parts.append(f"---- {group}=... one of: {', '.join(names)}")
        for name in names:
            parts.append(f"[{group}={name}]\n{(configs_folder() / group / f'{name}.yaml').read_text()}")
    return "\n".join(parts)
