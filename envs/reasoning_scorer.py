"""What reasoning-gym's scorers do with text that a model wrote. Runs in guests of the sandbox only: see `isolated.py`.

Differs from the source (reasoning-gym): nine scorers execute an answer, four by `eval` and five by sympy's parser, which knows
`exec`; an answer could so change the scorer that judges it. Here the four read literals, and the five mathematical terms only.
"""

import ast
import importlib
from collections.abc import Mapping
from typing import Any

import sympy
from reasoning_gym import get_score_answer_fn

_EVALUATING = ("algorithmic.binary_matrix", "algorithmic.spiral_matrix", "algorithmic.string_insertion", "games.n_queens")
_PARSING = ("games.countdown", "games.puzzle24")  # the three others call sympy.parse_expr
_TERMS = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Name, ast.Load)
_ROOTS = ("sqrt", "cbrt")  # plain functions in sympy, not of its FunctionClass
_parse = sympy.parse_expr


def score(task: str, answer: str, entry: Mapping[str, Any]) -> float:
    """The task's own reward for an answer, clipped to [0, 1]; 0 if the scorer cannot make anything of it."""
    try:
        return min(1.0, max(0.0, float(get_score_answer_fn(task)(answer, dict(entry)))))
    except MemoryError:
        raise
    except Exception:  # whatever it is that a scorer makes of hostile text
        return 0.0


def term(text: str, *args: Any, **kwargs: Any) -> Any:
    """sympy's `parse_expr` for numbers, names, operators and mathematical functions. ValueError or SyntaxError for all else."""
    for node in ast.walk(ast.parse(text.strip(), mode="eval")):
        if not _harmless(node):
            raise ValueError(f"a {type(node).__name__} is no part of a mathematical term")
    return _parse(text, *args, **kwargs)


def _harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        return not node.keywords and (name in _ROOTS or isinstance(getattr(sympy, name, None), sympy.FunctionClass))
    return isinstance(node, _TERMS) or (isinstance(node, ast.Constant) and isinstance(node.value, int | float))


def _disarm() -> None:
    for name in _EVALUATING:
        vars(importlib.import_module(f"reasoning_gym.{name}"))["eval"] = ast.literal_eval  # found before the builtin
    for name in _PARSING:
        vars(importlib.import_module(f"reasoning_gym.{name}"))["parse_expr"] = term
    sympy.parse_expr = term


_disarm()
