"""HumanEval, and EvalPlus's HumanEval+: complete a function from its docstring, from the official files.

Description:       164 functions with a docstring and hidden tests, written by hand; HumanEval+ has the same with many more tests.
Observation space: imports, signature and docstring, as the file has them.
Action space:      the body of the function; or the whole function, bare or in a code block.
Rewards:           with reward="all" (the default, as published) 1.0 if every test passes, with "share" the share that does; info
                   has both as "solved" and "share". Programs run in the sandbox.
Starting state:    row `index` of the split.
Episode end:       after one answer.
Settings:          path, reward, check (programs.py).
Version history:   v0.

A row as the file has it (written for this page; the file itself is openai/human-eval, MIT licence):

    {"task_id": "Own/0", "entry_point": "half", "canonical_solution": "    return n / 2\\n",
     "prompt": "def half(n: int) -> float:\\n    \\"\\"\\" Half of n.\\n    >>> half(3)\\n    1.5\\n    \\"\\"\\"\\n",
     "test": "def check(candidate):\\n    assert candidate(3) == 1.5\\n    assert candidate(0) == 0\\n"}

Use (one file is divided in three; declared as "test" it is there for evaluation alone):

    gymnasium.make("envs:svf/HumanEval-v0", path={"test": "HumanEval.jsonl.gz"})
    gymnasium.make("envs:svf/HumanEval-v0", path="hf:evalplus/humanevalplus")

EvalPlus's rows come in two forms, both of which are read: see `evalplus.py`.

Source: Chen et al. 2021, https://github.com/openai/human-eval; Liu et al. 2023, https://github.com/evalplus/evalplus.
Differs from the source:
1. Programs have two seconds of processor time for all tests together, not three on the clock.
2. A reward may be the share of tests that pass.
"""

from collections.abc import Mapping

from envs import evalplus
from envs.isolated import PROGRAMS
from envs.programs import MAX_TESTS, REWARDS, Problem, checked, score_program
from envs.rows import RowTask, content
from envs.sandbox import Limits
from envs.sources import Row, RowsError, Unusable
from envs.text import Item, Score


def humaneval(path: str | Mapping[str, str], reward: str = "all", check: bool = True) -> RowTask:
    """The task of a file, of files by split, or of a data set."""
    if reward not in REWARDS:
        raise RowsError(f"reward must be one of {', '.join(REWARDS)}, not {reward!r}")
    make = (lambda row: checked(_item(row))) if check else _item

    def score(item: Item, completion: str) -> Score:
        return score_program(item.facts["problem"], completion, reward)

    return RowTask("HumanEval-v0", path, make, score, guests=(PROGRAMS,))


def _item(row: Row) -> Item:
    prompt, entry, solution = (row.text(column) for column in ("prompt", "entry_point", "canonical_solution"))
    problem = Problem(prompt, solution, entry, *_tests(row, prompt, entry, prompt + solution))
    if len(problem.tests) > MAX_TESTS:
        raise Unusable("tests of more than 1 MiB")
    return Item(prompt, solution, content(prompt), {"problem": problem, "task_id": str(row.values.get("task_id", ""))})


def _tests(row: Row, prompt: str, entry: str, canonical: str) -> tuple[str, str, Limits]:
    """Assertions, what they may refer to, and limits."""
    if "plus_input" in row.values:
        return evalplus.check(row.values, entry, canonical), evalplus.NUMPY, evalplus.LIMITS
    tests = row.text("test")
    if evalplus.wants_numpy(tests):
        return tests, evalplus.NUMPY + prompt, evalplus.LIMITS
    return tests, prompt, Limits()
