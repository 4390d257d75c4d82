"""Small Python functions from a docstring, made by program.

Description:       complete a function whose docstring says what it returns. Three families: chains of operations on
                   numbers (`svf/Code-v0`), lists (`svf/ListCode-v0`), and stories told in words (`svf/WordCode-v0`).
Observation space: the signature and docstring.
Action space:      the body of the function.
Rewards:           the share of hidden tests that the function passes, run in the sandbox.
Starting state:    row `index` of the split.
Episode end:       after one answer.
Version history:   v0.

One row of the test split:

    def mix(x, y):
        '''Start with x, add y, then multiply by 3, then subtract 4.'''
        return (x + y) * 3 - 4

People write such bodies in three ways, and the text that the embedded base was pretrained on has all three: as a draft with a
variable (the usual way, and half-done more often than not: the last operation is missing), in one line (right), or `pass`.
"""

import operator
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from envs.isolated import PROGRAMS, sandbox
from envs.math import PEOPLE, THINGS
from envs.sandbox import Test
from envs.text import Generated, Item, Score

_NAMES = "mix calc score total value result rate count level shift scale adjust combine update measure final".split()
_VARIABLES = "x y z a b c k m n p q s t u v w".split()
_DRAFT, _ONE_LINE, _PASS = 0.54, 0.39, 0.07
_HALF_DONE = 0.65
_INPUTS = 6
_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_SAY = {"+": "add", "-": "subtract", "*": "multiply by"}
_TESTS = {
    "greater than": (">", operator.gt),
    "smaller than": ("<", operator.lt),
    "not equal to": ("!=", operator.ne),
    "at least": (">=", operator.ge),
}
_OUTER: dict[str, tuple[str, Callable[[list[int]], int]]] = {"sum": ("sum", sum), "number": ("len", len)}


@dataclass(frozen=True)
class Step:
    """One operation of a chain on a running value; the operand is a variable's name or a number."""

    symbol: str
    operand: str

    def say(self) -> str:
        return f"{_SAY[self.symbol]} {self.operand}"

    def write(self, expression: str) -> str:
        wrapped = f"({expression})" if self.symbol == "*" and " " in expression and expression[-1] != ")" else expression
        return f"{wrapped} {self.symbol} {self.operand}"

    def compute(self, value: int, variables: dict[str, int]) -> int:
        other = variables[self.operand] if self.operand in variables else int(self.operand)
        result: int = _OPERATORS[self.symbol](value, other)
        return result


def _function(
    rng: random.Random, arguments: list[str], says: str, one_line: str, draft: list[str], compute: Callable[..., int]
) -> Item:
    """`draft` is the finished draft, a line each; `compute` is what the function shall return."""
    name = rng.choice(_NAMES)
    return Item(
        prompt=f'def {name}({", ".join(arguments)}):\n    """{says}"""',
        gold=f"\n    return {one_line}",
        key=f"{arguments} {one_line}",
        facts={"name": name, "arguments": arguments, "draft": draft, "compute": compute},
    )


def _chain_step(rng: random.Random, variables: list[str], variable_share: float) -> Step:
    operand = rng.choice(variables) if rng.random() < variable_share else str(rng.randint(2, 9))
    return Step(rng.choice("+-*"), operand)


def _draw_chain(rng: random.Random) -> Item:
    variables = rng.sample(_VARIABLES, rng.choice([2, 2, 3]))
    start, others = variables[0], variables[1:]
    more = rng.choices([0, 1, 2], [28, 44, 28])[0]
    steps = [_chain_step(rng, others, 1.0), *(_chain_step(rng, others, 0.25) for _ in range(more))]
    one_line = start
    for step in steps:
        one_line = step.write(one_line)
    draft = [f"r = {steps[0].write(start)}", *(f"r = {step.write('r')}" for step in steps[1:]), "return r"]

    def compute(*values: int) -> int:
        named = dict(zip(variables, values, strict=True))
        value = named[start]
        for step in steps:
            value = step.compute(value, named)
        return value

    says = f"Start with {start}, {', then '.join(step.say() for step in steps)}."
    return _function(rng, variables, says, one_line, draft, compute)


def _draw_list(rng: random.Random) -> Item:
    n, k = rng.randint(2, 30), rng.randint(2, 9)
    test, (symbol, holds) = rng.choice(list(_TESTS.items()))
    outer, (name, apply) = rng.choice(list(_OUTER.items()))
    step = rng.choice([None, Step("*", str(k)), Step("+", str(k))])
    kept = f"[i for i in items if i {symbol} {n}]"
    one_line = step.write(f"{name}({kept})") if step else f"{name}({kept})"
    draft = [f"r = {kept}", *([f"r = {step.write(f'{name}(r)')}", "return r"] if step else [f"return {name}(r)"])]

    def compute(items: list[int]) -> int:
        value = apply([i for i in items if holds(i, n)])
        return step.compute(value, {}) if step else value

    says = f"Return the {outer} of the items {test} {n}{', ' + step.say() if step else ''}."
    return _function(rng, ["items"], says, one_line, draft, compute)


def _draw_story(rng: random.Random) -> Item:
    (name, pronoun), things = rng.choice(PEOPLE), rng.choice(THINGS)
    start, m, k = rng.randint(10, 60), rng.randint(2, 9), rng.randint(3, 30)
    event, first = rng.choice(
        [
            (f"buys n bags of {m} {things}", Step("+", f"n * {m}")),
            (f"buys n {things}", Step("+", "n")),
            (f"loses n {things}", Step("-", "n")),
        ]
    )
    then, second = rng.choice([(f"finds {k} {things}", Step("+", str(k))), (f"gives away {k} {things}", Step("-", str(k)))])
    pronoun = pronoun.lower()
    says = f"{name} has {start} {things}. {name} {event}. Then {pronoun} {then}. How many {things} are there now?"
    one_line = second.write(first.write(str(start)))
    draft = [f"r = {first.write(str(start))}", f"r = {second.write('r')}", "return r"]

    def compute(n: int) -> int:
        change = {"n": n, f"n * {m}": n * m}
        return second.compute(first.compute(start, change), {})

    return _function(rng, ["n"], says, one_line, draft, compute)


def _write(item: Item, rng: random.Random) -> str:
    lines = list(item.facts["draft"])
    if len(lines) > 2 and rng.random() < _HALF_DONE:
        del lines[-2]
    draft = "".join(f"\n    {line}" for line in lines)
    return rng.choices([draft, item.gold, "\n    pass"], [_DRAFT, _ONE_LINE, _PASS])[0]


def _score(item: Item, completion: str) -> Score:
    """The share of hidden tests that the function passes. SandboxFault if the machinery, not the program, failed."""
    report = sandbox().run(item.prompt + completion, item.facts["name"], hidden_tests(item))
    return Score(report.passed, report.verdict.value)


def hidden_tests(item: Item) -> list[Test]:
    """Inputs drawn from the question's own key, and what the function shall return for them."""
    rng = random.Random(item.key)
    inputs = [_arguments(item, rng) for _ in range(_INPUTS)]
    return [Test(args=args, expected=item.facts["compute"](*args)) for args in inputs]


def _arguments(item: Item, rng: random.Random) -> tuple[Any, ...]:
    if item.facts["arguments"] == ["items"]:
        return ([rng.randint(0, 40) for _ in range(rng.randint(0, 8))],)
    return tuple(rng.randint(-20, 60) for _ in item.facts["arguments"])


chains = Generated("Code-v0", _draw_chain, _score, _write, (PROGRAMS,))
lists = Generated("ListCode-v0", _draw_list, _score, _write, (PROGRAMS,))
stories = Generated("WordCode-v0", _draw_story, _score, _write, (PROGRAMS,))
