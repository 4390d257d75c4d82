"""MBPP: small Python programs from a sentence, from the official files.

Description:       974 programs, each with a sentence that says what it does and three assertions; 427 of them were revised later.
Observation space: a docstring with the sentence and the first assertion, which gives away the function's name and arguments.
Action space:      the program, bare or in a code block.
Rewards:           with reward="share" (the default) the share of the assertions that hold, with "all" 1.0 if all do; info has
                   both as "share" and "solved". Programs run in the sandbox.
Starting state:    row `index` of the split.
Episode end:       after one answer.
Settings:          path, reward, template (of {text}, {test}, the first assertion, {tests}, all of them), check (programs.py).
Version history:   v0.

A row as the file has it (written for this page; the files themselves are google-research/mbpp, CC BY 4.0):

    {"text": "Write a function to double a number.", "code": "def double(n):\\r\\n  return 2 * n", "task_id": 1000,
     "test_setup_code": "", "test_list": ["assert double(2) == 4", "assert double(-1) == -2"], "challenge_test_list": []}

Use; the task numbers divide one file as published (test 11 to 510, valid 511 to 600, train the others):

    gymnasium.make("envs:svf/MBPP-v0", path="mbpp.jsonl")            # or sanitized-mbpp.json
    gymnasium.make("envs:svf/MBPP-v0", path="hf:evalplus/mbppplus")

Source: Austin et al. 2021, https://github.com/google-research/google-research/tree/master/mbpp; Liu et al. 2023 for MBPP+.
Differs from the source:
1. The prompt shows one assertion, as EvalPlus does; the paper shows all that it grades by (template has {tests} for that).
2. Rows whose assertions need more of the reference program than one function, such as a class for the arguments, cannot be asked:
   only plain data passes between guests.
3. Of two rows with the same sentence one is left out. The paper's few-shot examples, tasks 1 to 10, belong to train.
"""

from collections.abc import Mapping
from typing import Any

from envs import evalplus
from envs.isolated import PROGRAMS
from envs.programs import MAX_TESTS, REWARDS, Problem, checked, defined, imports, score_program, used
from envs.rows import RowTask, content, fill
from envs.sources import Row, RowsError, Unusable
from envs.text import Item, Score

TEMPLATE = '"""\n{text}\n{test}\n"""\n'


def mbpp(path: str | Mapping[str, str], reward: str = "share", template: str = TEMPLATE, check: bool = True) -> RowTask:
    """The task of a file, of files by split, or of a data set."""
    if reward not in REWARDS:
        raise RowsError(f"reward must be one of {', '.join(REWARDS)}, not {reward!r}")

    def item(row: Row) -> Item:
        made = _item(row, template)
        return checked(made) if check else made

    def score(item: Item, completion: str) -> Score:
        return score_program(item.facts["problem"], completion, reward)

    return RowTask("MBPP-v0", path, item, score, official_split, (PROGRAMS,))


def official_split(row: Row) -> str | None:
    """The split of the published task numbers; None for a row without one."""
    number = row.values.get("task_id")
    if not isinstance(number, int):
        return None
    return "test" if 11 <= number <= 510 else "valid" if 511 <= number <= 600 else "train"


def _item(row: Row, template: str) -> Item:
    text, code = row.text("text" if "text" in row.values else "prompt"), row.text("code")
    tests, setup = _assertions(row.values)
    problem = _problem(code, "\n".join(tests), setup, row.values.get("test"))
    if len(problem.tests) > MAX_TESTS:
        raise Unusable("tests of more than 1 MiB")
    values = {**row.values, "text": text, "test": tests[0].strip(), "tests": "\n".join(test.strip() for test in tests)}
    return Item(fill(template, Row(values, row.where)), code, content(text), {"problem": problem})


def _assertions(values: Mapping[str, Any]) -> tuple[list[str], str]:
    """The assertions, and source to run before them."""
    if "plus_input" in values:
        raise Unusable("MBPP+ inputs as JSON, which has no tuples; the data set hf:evalplus/mbppplus keeps them")
    tests = values.get("test_list")
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise Unusable("no assertions in column 'test_list'")
    return tests, "\n".join([*(values.get("test_imports") or ()), values.get("test_setup_code") or ""])


def _problem(code: str, tests: str, setup: str, plus: Any) -> Problem:
    """The function under test is the one of the reference program that the assertions call; `plus` are MBPP+'s assertions."""
    try:
        names = used(tests) | used(setup)
        needed = names & (defined(code) - defined(setup))
        preamble = "\n".join([*imports(code, names), setup])
    except (SyntaxError, ValueError):
        raise Unusable("a reference program or assertions that are no Python") from None
    if len(needed) != 1:
        raise Unusable(f"assertions that use {'more than one' if needed else 'no'} function of the reference program")
    if isinstance(plus, str) and plus.strip():
        return Problem("", code, needed.pop(), plus, evalplus.NUMPY + preamble, evalplus.LIMITS)
    return Problem("", code, needed.pop(), tests, preamble)
