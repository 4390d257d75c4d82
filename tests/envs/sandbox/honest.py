"""Honest programs of every kind, beyond those of the start-up self-test: a sandbox that fails one of them teaches lies."""

# ruff: noqa: E501 - a program in one line is easier to look over than the same program in five strings

HONEST: dict[str, tuple[str, tuple[object, ...], object]] = {
    "bisection": ("import bisect\ndef solve(a, x): return bisect.bisect_left(a, x)", ([1, 3, 5], 4), 2),
    "matrix": ("def solve(m): return [list(r) for r in zip(*m)]", ([[1, 2], [3, 4]],), [[1, 3], [2, 4]]),
    "keyword-only": ("def solve(*, n=2): return n", (), 2),
    "nested functions": ("def solve(n):\n def inc(k):\n  nonlocal n\n  n += k\n inc(2)\n return n", (1,), 3),
    "walrus and comprehension": ("def solve(a): return [y for x in a if (y := x * 2) > 2]", ([1, 2],), [4]),
    "match": ("def solve(p):\n match p:\n  case [x, *rest]: return (x, rest)", ([1, 2],), (1, [2])),
    "default dict": (
        "from collections import defaultdict\ndef solve(s):\n d = defaultdict(list)\n for c in s: d[c].append(1)\n return d",
        ("aa",),
        {"a": [1, 1]},
    ),
    "deque": (
        "from collections import deque\ndef solve(a):\n d = deque(a)\n d.rotate(1)\n return list(d)",
        ([1, 2],),
        [2, 1],
    ),
    "abstract class": (
        "from abc import ABC, abstractmethod\nclass A(ABC):\n @abstractmethod\n def f(s): ...\n"
        "class B(A):\n def f(s): return 1\ndef solve(): return B().f()",
        (),
        1,
    ),
    "metaclass": (
        "class M(type):\n def __len__(c): return 4\nclass A(metaclass=M): pass\ndef solve(): return len(A)",
        (),
        4,
    ),
    "property and slots": (
        "class A:\n __slots__ = ('x',)\n @property\n def y(s): return s.x + 1\ndef solve():\n a = A()\n a.x = 1\n return a.y",
        (),
        2,
    ),
    "context manager": (
        "from contextlib import contextmanager\n@contextmanager\ndef c():\n yield 3\ndef solve():\n with c() as x: return x",
        (),
        3,
    ),
    "fractions": (
        "from fractions import Fraction\ndef solve(): return str(Fraction(1, 3) + Fraction(1, 6))",
        (),
        "1/2",
    ),
    "statistics": ("import statistics\ndef solve(a): return statistics.median(a)", ([1, 2, 3, 10],), 2.5),
    "hashing": ("import hashlib\ndef solve(s): return hashlib.md5(s.encode()).hexdigest()[:6]", ("a",), "0cc175"),
    "sha of openssl": (
        "import hashlib\ndef solve(s): return hashlib.new('sha3_256', s).hexdigest()[:6]",
        (b"a",),
        "80084b",
    ),
    "compression": (
        "import zlib, bz2, lzma\ndef solve(b): return lzma.decompress(lzma.compress(bz2.decompress(bz2.compress(b))))",
        (b"x" * 99,),
        b"x" * 99,
    ),
    "json": ("import json\ndef solve(s): return json.loads(s)", ('{"a": [1, null]}',), {"a": [1, None]}),
    "csv in memory": (
        "import csv, io\ndef solve(s): return list(csv.reader(io.StringIO(s)))",
        ("a,b\n1,2",),
        [["a", "b"], ["1", "2"]],
    ),
    "random, seeded": ("import random\ndef solve():\n random.seed(1)\n return random.randint(1, 100)", (), 18),
    "big sort": ("def solve(n): return sorted(range(n, 0, -1))[:3]", (300_000,), [1, 2, 3]),
    "sieve": (
        "def solve(n):\n s = bytearray([1]) * (n + 1)\n s[:2] = b'\\0\\0'\n"
        " for i in range(2, int(n ** .5) + 1):\n  if s[i]: s[i*i::i] = bytes(len(s[i*i::i]))\n return sum(s)",
        (1_000_000,),
        78498,
    ),
    "large output": ("def solve(n): return list(range(n))", (20_000,), list(range(20_000))),
    "large table": ("def solve(n): return len([[0] * n for _ in range(n)])", (1_500,), 1_500),
    "sqlite in memory": (
        "import sqlite3\ndef solve(): return sqlite3.connect(':memory:').execute('select 6 * 7').fetchone()",
        (),
        (42,),
    ),
    "unicode": ("import unicodedata\ndef solve(s): return unicodedata.normalize('NFD', s)", ("é",), "e\u0301"),
    "emoji": ("def solve(s): return s * 2", ("🦊",), "🦊🦊"),
    "threads and a queue": (
        "import threading, queue\ndef solve():\n q = queue.Queue()\n"
        " t = [threading.Thread(target=q.put, args=(i,)) for i in range(8)]\n [x.start() for x in t]\n [x.join() for x in t]\n"
        " return sorted(q.queue)",
        (),
        list(range(8)),
    ),
    "thread with a large stack": (
        "import sys, threading\nsys.setrecursionlimit(10 ** 6)\nthreading.stack_size(1 << 26)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\n"
        "def solve(n):\n r = []\n t = threading.Thread(target=lambda: r.append(f(n)))\n t.start()\n t.join()\n return r[0]",
        (50_000,),
        50_000,
    ),
    "asyncio gather": (
        "import asyncio\nasync def f(i):\n await asyncio.sleep(0.001)\n return i\n"
        "async def g(): return await asyncio.gather(*map(f, range(3)))\ndef solve(): return asyncio.run(g())",
        (),
        [0, 1, 2],
    ),
    "time zones": (
        "from zoneinfo import ZoneInfo\nfrom datetime import datetime\ndef solve(): return str(datetime(2024, 1, 1, tzinfo=ZoneInfo('UTC')))",
        (),
        "2024-01-01 00:00:00+00:00",
    ),
    "redirected output": (
        "import io, contextlib\ndef solve():\n b = io.StringIO()\n with contextlib.redirect_stdout(b): print('x')\n return b.getvalue()",
        (),
        "x\n",
    ),
    "null device": ("import os\ndef solve():\n with open(os.devnull, 'w') as f: return f.write('xy')", (), 2),
    "pickle of its own class": (
        "import pickle\nclass A:\n def __init__(s): s.x = 1\ndef solve(): return pickle.loads(pickle.dumps(A())).x",
        (),
        1,
    ),
    "typing at run time": (
        "from typing import get_type_hints, Generic, TypeVar\nT = TypeVar('T')\nclass A(Generic[T]):\n x: 'int'\n"
        "def solve(): return get_type_hints(A)['x'] is int",
        (),
        True,
    ),
    "integer enumeration": ("from enum import IntEnum\nclass C(IntEnum):\n R = 3\ndef solve(): return C.R", (), 3),
    "ctypes arithmetic": ("import ctypes\ndef solve(): return ctypes.c_int32(2 ** 31).value", (), -(2**31)),
    "exec and eval": ("def solve(s): return eval(s)", ("1 + 1",), 2),
    "docstring tests": (
        "import doctest\ndef solve():\n '''\n >>> 1\n 1\n '''\n return doctest.run_docstring_examples(solve, {}) ",
        (),
        None,
    ),
    "infinity and NaN": (
        "import math\ndef solve(): return [math.inf, -math.inf, math.nan]",
        (),
        [float("inf"), float("-inf"), float("nan")],
    ),
    "set order is the same every day": ("def solve(): return list({'b', 'a', 'c'}) == list({'b', 'a', 'c'})", (), True),
    "warnings": ("import warnings\ndef solve():\n warnings.warn('x')\n return 1", (), 1),
    "logging": ("import logging\ndef solve():\n logging.error('x')\n return 1", (), 1),
    "sleep a little": ("import time\ndef solve():\n time.sleep(0.05)\n return 1", (), 1),
}
