"""Assert statements become (arguments, expected value) pairs, by reading their syntax and running nothing.

What converts, with f the function under test and everything else made of literals:
    assert f(...) == value        also value == f(...), and `is` with True, False or None
    assert abs(f(...) - value) < tolerance
Everything else (loops, helpers, comparisons such as <, truthiness) does not, and then the whole test runs as source
in a guest of its own; see `Sandbox.run_asserts`. Truthiness is left out because `assert f(x)` accepts more than True.

Design rule: `ast.literal_eval` is not used. Literals are built by a walker with a budget, which also allows what test
files write for brevity: arithmetic, repetition, and the constructors of the plain types.

Differs from plain Python: True == 1 there; a converted test wants a bool for a bool.
"""

import ast
import operator
from collections.abc import Callable
from typing import Any

from .records import Test
from .values import encode

_MAX_SOURCE = 1 << 20
_MAX_SIZE = 100_000  # members, characters or bits of any one value
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "set": set,
    "frozenset": frozenset,
    "tuple": tuple,
    "list": list,
    "dict": dict,
    "float": float,
}


class NotLiteral(ValueError):
    """The expression is not made of literals, or its value would be too large."""


def convert(test: str, entry: str) -> tuple[Test, ...] | None:
    """Turn assertions into tests.

    Args:
        test: a module with a function `check(candidate)`, or plain assert statements about `entry`.
        entry: the name of the function under test.
    Returns:
        One test per assertion, or None if any statement does not convert or there is no assertion.
    Raises:
        ValueError: the source does not parse, or is longer than a mebibyte.
    """
    body, name = _statements(_parse(test), entry)
    tests = []
    for statement in body:
        if _is_idle(statement):
            continue
        converted = _test(statement.test, name) if isinstance(statement, ast.Assert) else None
        if converted is None:
            return None
        tests.append(converted)
    return tuple(tests) or None


def as_check(test: str, entry: str) -> str:
    """The assertions as a module that defines `check(candidate)`.

    Raises:
        ValueError: the source does not parse.
    """
    module = _parse(test)
    if _check_function(module):
        return test
    wrapper = ast.parse(f"def check({entry}): pass")
    function = wrapper.body[0]
    if isinstance(function, ast.FunctionDef) and module.body:
        function.body = module.body
    return ast.unparse(wrapper)


def _parse(test: str) -> ast.Module:
    if len(test) > _MAX_SOURCE:
        raise ValueError("assertions longer than 1 MiB")
    try:
        return ast.parse(test)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"the assertions do not parse: {error}") from None


def _check_function(module: ast.Module) -> ast.FunctionDef | None:
    found = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    return found[0] if found else None


def _statements(module: ast.Module, entry: str) -> tuple[list[ast.stmt], str]:
    """The statements that test, and what they call the function."""
    check = _check_function(module)
    if check is None:
        return module.body, entry
    others = [node for node in module.body if node is not check and not _is_metadata(node, entry)]
    return others + check.body, check.args.args[0].arg if check.args.args else entry


def _is_metadata(statement: ast.stmt, entry: str) -> bool:
    """Assignments of literals, and the call of `check` itself that some files end with."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        return ast.unparse(statement.value) == f"check({entry})"
    try:
        return isinstance(statement, ast.Assign) and literal(statement.value) is not NotImplemented
    except NotLiteral:
        return False


def _is_idle(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Assert):
        return isinstance(statement.test, ast.Constant) and bool(statement.test.value)
    return isinstance(statement, ast.Pass) or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))


def _test(condition: ast.expr, name: str) -> Test | None:
    if not isinstance(condition, ast.Compare) or len(condition.ops) != 1:
        return None
    left, right, comparison = condition.left, condition.comparators[0], condition.ops[0]
    try:
        if isinstance(comparison, ast.Eq):
            flip = _is_call(right, name)
            return _pair(right if flip else left, left if flip else right, name, 0.0)
        if isinstance(comparison, ast.Is) and isinstance(right, ast.Constant):
            return _pair(left, right, name, None) if right.value in (True, False, None) else None
        if isinstance(comparison, ast.Lt | ast.LtE):
            return _near(left, literal(right), name)
    except NotLiteral:
        pass
    return None


def _near(left: ast.expr, tolerance: object, name: str) -> Test | None:
    """abs(f(...) - value) < tolerance, either way round."""
    if not (_is_call(left, "abs") and isinstance(tolerance, int | float)):
        return None
    difference = left.args[0] if isinstance(left, ast.Call) and len(left.args) == 1 else None
    if not (isinstance(difference, ast.BinOp) and isinstance(difference.op, ast.Sub)):
        return None
    flip = _is_call(difference.right, name)
    call, value = (difference.right, difference.left) if flip else (difference.left, difference.right)
    return _pair(call, value, name, float(tolerance))


def _pair(call: ast.expr, expected: ast.expr, name: str, tolerance: float | None) -> Test | None:
    if not (isinstance(call, ast.Call) and _is_call(call, name)):
        return None
    if any(keyword.arg is None for keyword in call.keywords):
        return None
    args = tuple(literal(argument) for argument in call.args)
    kwargs = {keyword.arg or "": literal(keyword.value) for keyword in call.keywords}
    return Test(args, kwargs, literal(expected), tolerance)


def _is_call(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def literal(node: ast.expr) -> Any:
    """The value of an expression made of literals.

    Raises:
        NotLiteral: it is not, or the value or a part of it would exceed the size limit.
    """
    try:
        return _bounded(_value(node))
    except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise NotLiteral(str(error)) from None


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value) if not isinstance(value, complex) and value is not Ellipsis:
            return value
        case ast.List(elts=items):
            return [literal(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(literal(item) for item in items)
        case ast.Set(elts=items):
            return {literal(item) for item in items}
        case ast.Dict(keys=keys, values=items):
            return {literal(key or node): literal(item) for key, item in zip(keys, items, strict=True)}
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -literal(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return +literal(operand)
        case ast.BinOp(left=left, op=op, right=right):
            return _compute(op, literal(left), literal(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _CONSTRUCTORS:
            return _CONSTRUCTORS[name](*(literal(argument) for argument in args))
    raise NotLiteral(ast.dump(node)[:100])


def _compute(op: ast.operator, left: Any, right: Any) -> Any:
    """Arithmetic whose result is known to be small before it is computed."""
    if type(op) not in _OPERATORS or (isinstance(op, ast.Mod) and isinstance(left, str | bytes)):
        raise NotLiteral("operator")
    if isinstance(op, ast.Mult) and not (_is_number(left) and _is_number(right)):
        count, repeated = (left, right) if isinstance(left, int) else (right, left)
        if not isinstance(count, int):
            raise NotLiteral("repetition")
        encode(repeated, _MAX_SIZE // max(count, 1))  # raises if the result would be too large, nested members included
    if isinstance(op, ast.Pow) and not (_is_number(left) and _is_number(right) and abs(right) <= 1_000):
        raise NotLiteral("power")
    return _OPERATORS[type(op)](left, right)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _bounded(value: Any) -> Any:
    too_large = value.bit_length() > _MAX_SIZE if isinstance(value, int) else False
    if too_large or (hasattr(value, "__len__") and len(value) > _MAX_SIZE):
        raise NotLiteral("too large")
    return value
