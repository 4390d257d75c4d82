"""A sample of hostile and honest programs, run for real when a sandbox starts.

Design rule: the verdicts come from guests of the very servers that will be used, never from feature flags. An attack is
written so that success is the expected answer: contained means anything but `pass`. The attack suite in
`tests/envs/sandbox/` is the long version.
"""

from collections.abc import Callable, Iterable

from .records import Job, Limits, Report, Test, Verdict

LIMITS = Limits(cpu_seconds=1.0, wall_seconds=5.0)
IMPATIENT = Limits(cpu_seconds=0.1, wall_seconds=0.5)

ESCAPED = "escaped"
# name → body of a function that returns "escaped" if it gets through
ATTACKS: dict[str, str] = {
    "read passwd": "open('/etc/passwd').read()",
    "read own environment": "open('/proc/self/environ').read()",
    "see the machine's files": "import os; assert {'boot', 'home', 'srv'} & set(os.listdir('/'))",
    "read the sandbox": "import _sandbox.guest as g; open(g.__file__).read()",
    "environment secrets": "import os; assert len(os.environ) > 2",
    "write a file": "open('/tmp/sandbox-escape', 'w').write('x')",
    "write beside the library": "import os; open(os.path.dirname(os.__file__) + '/x', 'w')",
    "make a link": "import os; os.symlink('/etc/passwd', '/tmp/sandbox-link')",
    "tcp socket": "import socket; socket.socket()",
    "udp datagram": "import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', 9))",
    "unix socket": "import socket; socket.socket(1, 1)",
    "fork": "import os; os.fork() or os._exit(0)",
    "execute": "import os; os.execv('/bin/true', ['true'])",
    "signal the parent": "import os; os.kill(os.getppid(), 0)",
    "raise a limit": "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1))",
    "ptrace": "import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)",
    "new user namespace": "import ctypes; ctypes.CDLL(None).unshare(0x10000000)",
    "exit early": "import os; os._exit(0)",
    "system exit": "raise SystemExit(0)",
    "forge a frame": 'import os; os.write(3, b\'\\0\\0\\0\\x13["value","escaped"]\')',
    "always equal": "return type('E', (str,), {'__eq__': lambda s, o: True, '__hash__': str.__hash__})('no')",
    "frames hold no answer": "import gc; assert any('escaped' == o for o in gc.get_objects())",
    "memory bomb": "x = [0] * (1 << 34)",
}
SLOW_ATTACKS: dict[str, str] = {
    "endless loop": "\n  while True: pass",
    "catch-all loop": "\n  while True:\n   try:\n    while True: pass\n   except BaseException: pass",
    "sleep": "import time; time.sleep(1000)",
}

# source, arguments, right answer; the entry function is always `solve`
HONEST: dict[str, tuple[str, tuple[object, ...], object]] = {
    "arithmetic": ("def solve(a, b): return a + b", (2, 3), 5),
    "floats": ("def solve(x): return x / 3", (1.0,), 1.0 / 3),
    "large integers": ("def solve(n): return 3 ** n", (500,), 3**500),
    "text": ("def solve(s): return s[::-1].upper()", ("straße",), "ESSARTS"),
    "bytes": ("def solve(b): return bytes(reversed(b))", (b"\x00\xff",), b"\xff\x00"),
    "tuple": ("def solve(a, b): return (b, a)", (1, "x"), ("x", 1)),
    "sets": ("def solve(a): return {x % 3 for x in a}", ([1, 2, 3, 4],), {0, 1, 2}),
    "dict": ("from collections import Counter\ndef solve(s): return Counter(s)", ("aab",), {"a": 2, "b": 1}),
    "nothing": ("def solve(): pass", (), None),
    "recursion": ("def solve(n): return n if n < 2 else solve(n - 1) + solve(n - 2)", (15,), 610),
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(20000)\ndef solve(n): return 0 if n == 0 else 1 + solve(n - 1)",
        (10_000,),
        10_000,
    ),
    "generators": ("def g(n):\n  yield from range(n)\ndef solve(n): return list(g(n))", (4,), [0, 1, 2, 3]),
    "classes": (
        "class P:\n  def __init__(s, x): s.x = x\n  def __add__(s, o): return P(s.x + o.x)\n"
        "def solve(a, b): return (P(a) + P(b)).x",
        (2, 3),
        5,
    ),
    "dataclass": (
        "from dataclasses import dataclass, astuple\n@dataclass\nclass P:\n  x: int\n  y: 'list[int]'\n"
        "def solve(): return astuple(P(1, [2]))",
        (),
        (1, [2]),
    ),
    "named tuple": (
        "from typing import NamedTuple\nclass P(NamedTuple):\n  x: int\ndef solve(): return P(1)",
        (),
        (1,),
    ),
    "printing": ("import sys\ndef solve():\n  print('x' * 10**5)\n  print(1, file=sys.stderr)\n  return 1", (), 1),
    "empty standard input": ("import sys\ndef solve(): return sys.stdin.read()", (), ""),
    "exceptions": ("def solve(s):\n  try: return int(s)\n  except ValueError: return -1", ("x",), -1),
    "memoising": (
        "from functools import lru_cache\n@lru_cache(None)\ndef solve(n): return n if n < 2 else solve(n - 1) + solve(n - 2)",
        (80,),
        23416728348467685,
    ),
    "heap": ("import heapq\ndef solve(a): return heapq.nsmallest(2, a)", ([3, 1, 2],), [1, 2]),
    "regular expressions": ("import re\ndef solve(s): return re.findall(r'\\d+', s)", ("a1b22",), ["1", "22"]),
    "dates": ("from datetime import date\ndef solve(): return (date(2024, 3, 1) - date(2024, 2, 1)).days", (), 29),
    "decimals": ("from decimal import Decimal\ndef solve(): return str(Decimal('0.1') * 3)", (), "0.3"),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def solve():\n  with ThreadPoolExecutor(4) as p: return sum(p.map(abs, [-1, -2]))",
        (),
        3,
    ),
    "coroutines": ("import asyncio\nasync def f(): return 7\ndef solve(): return asyncio.run(f())", (), 7),
    "large fair data": ("def solve(n): return sum(sorted(range(n), reverse=True))", (200_000,), 19999900000),
    "main guard": ("def solve(): return 1\nif __name__ == '__main__':\n  raise SystemExit", (), 1),
}


def attack_job(body: str) -> Job:
    """The program around one attack."""
    source = f"def solve():\n  {body}\n  return {ESCAPED!r}"
    return Job(source, "solve", (Test(expected=ESCAPED),))


def honest_job(name: str) -> Job:
    """One honest program, twice, so that state left behind would show."""
    source, args, expected = HONEST[name]
    return Job(source, "solve", (Test(args, expected=expected),) * 2)


def failures(run_many: Callable[[list[Job], Limits], Iterable[Report]], attacks: bool) -> list[str]:
    """Run everything; the names of what went wrong, with how.

    Args:
        run_many: runs jobs under limits and returns their reports in order.
        attacks: whether to run the attacks too, which only makes sense where something isolates.
    """
    found = []
    honest = run_many([honest_job(name) for name in HONEST], LIMITS)
    for name, report in zip(HONEST, honest, strict=True):
        if report.verdict is not Verdict.PASS:
            found.append(f"honest program {name!r}: {report.verdict} ({report.detail})")
    for table, limits in ((ATTACKS, LIMITS), (SLOW_ATTACKS, IMPATIENT)) if attacks else ():
        reports = run_many([attack_job(body) for body in table.values()], limits)
        for name, report in zip(table, reports, strict=True):
            if report.verdict in (Verdict.PASS, Verdict.INFRA):
                found.append(f"attack {name!r}: {report.verdict} ({report.detail})")
    return found
