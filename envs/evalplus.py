"""EvalPlus's rows, HumanEval+ and MBPP+, as assertions that run beside no model code (`envs.sandbox`, in a second guest).

They come in two forms. The released files have inputs ("base_input", "plus_input") and a tolerance ("atol"): `check` writes
assertions that compare each output with what the canonical solution, which is trusted, returns. The hub's copies have assertions
("test"), which want numpy: `NUMPY` is a stand-in with the names that they use.

Source: Liu et al. 2023, https://github.com/evalplus/evalplus, its evaluation of one program.
Differs from the source:
1. Programs have ten seconds of processor time for all tests together, not a time for each that follows the canonical solution's.
2. For `find_zero`, which has many right answers, any zero of the polynomial will do; the two functions of MBPP+ that the source
   judges more mildly (they may always return the same) are judged like the others.
"""

import json
from collections.abc import Mapping
from typing import Any

from envs.sandbox import Limits
from envs.sources import Unusable

LIMITS = Limits(cpu_seconds=10.0, memory_mb=512, output_bytes=8 << 20)

NUMPY = """
import math as _math, sys as _sys, types as _types
class _Never: pass
def _close(a, b, rtol=1e-05, atol=1e-08):
    if isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_close(x, y, rtol, atol) for x, y in zip(a, b))
    return a == b or (a != a and b != b) or (_math.isfinite(b) and abs(a - b) <= atol + rtol * abs(b))
def _assert_close(a, b, rtol=1e-07, atol=0.0):
    assert _close(a, b, rtol, atol)
_numpy = _types.ModuleType("numpy")
_numpy.ndarray, _numpy.float32, _numpy.float64, _numpy.allclose = _Never, _Never, float, _close
_numpy.testing = _types.SimpleNamespace(assert_allclose=_assert_close)
_sys.modules.setdefault("numpy", _numpy)
"""

_CHECK = """
import copy as _copy, json as _json
_space = {}
exec(_CANONICAL, _space)
def _floats(value):
    return isinstance(value, float) or (isinstance(value, (list, tuple)) and all(isinstance(v, float) for v in value))
def check(candidate):
    for given in _json.loads(_INPUTS):
        out = candidate(*_copy.deepcopy(given))
        if _ENTRY == "find_zero":
            assert abs(sum(c * out ** i for i, c in enumerate(given[0]))) <= _ATOL
            continue
        right = _space[_ENTRY](*_copy.deepcopy(given))
        tolerance = _ATOL or (1e-6 if _floats(right) else 0)
        assert out == right or (tolerance and _close(out, right, 1e-07, tolerance))
"""


def check(values: Mapping[str, Any], entry: str, canonical: str) -> str:
    """Assertions for a row of the released files; `NUMPY` goes before them. Unusable if the row has no inputs."""
    inputs = [*(values.get("base_input") or ()), *(values.get("plus_input") or ())]
    if not inputs:
        raise Unusable("no inputs in columns 'base_input' and 'plus_input'")
    facts = {"_CANONICAL": canonical, "_ENTRY": entry, "_ATOL": float(values.get("atol") or 0), "_INPUTS": json.dumps(inputs)}
    return "".join(f"{name} = {value!r}\n" for name, value in facts.items()) + _CHECK


def wants_numpy(tests: str) -> bool:
    """Whether assertions of the hub's form import numpy."""
    return "import numpy" in tests
