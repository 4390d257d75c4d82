"""The sandbox from the trainer's side: honest programs pass at any load; limits, order, trusted calls, faults."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from envs.sandbox import CallError, Job, Limits, Report, Sandbox, SandboxFault, Test, Verdict, selftest

from .attacks import ADD, ATTACKS
from .conftest import BRISK, family
from .honest import HONEST

RIGHT = "def solve(a, b): return a + b"
ROOMY = Limits(cpu_seconds=2.0)
BURN = """
import time
def solve(seconds):
    start = time.process_time()
    while time.process_time() - start < seconds: pass
    return "done"
"""


@pytest.mark.parametrize("name", HONEST)
def test_honest_program_passes(sandbox: Sandbox, name: str) -> None:
    source, args, expected = HONEST[name]
    report = sandbox.run(source, "solve", [Test(args, expected=expected)] * 2, ROOMY)
    assert report.verdict is Verdict.PASS, report
    assert report.passed == 1.0


@pytest.mark.parametrize("missing", [("namespaces",), ("landlock",)], ids=lambda names: "no " + names[0])
def test_honest_programs_pass_in_the_other_strong_tiers(missing: tuple[str, ...]) -> None:
    jobs = [Job(source, "solve", (Test(args, expected=expected),)) for source, args, expected in HONEST.values()]
    with Sandbox(limits=ROOMY, without=missing) as sandbox:
        reports = dict(zip(HONEST, sandbox.run_many(jobs), strict=True))
    assert {name: report for name, report in reports.items() if report.verdict is not Verdict.PASS} == {}


def test_a_set_of_strings_is_listed_alike_by_every_server() -> None:
    source = "def solve(): return list({'north', 'east', 'south', 'west', 'up', 'down'}) + [hash('north')]"
    probe_source = "def solve(): return __import__('random').random()"
    seen = []
    for _ in range(2):
        with Sandbox(workers=1) as sandbox:
            seen.append([sandbox.call("builtins:eval", [f"(exec({s!r}, g := {{}}), g['solve']())[1]"]) for s in (source,)])
            first = sandbox.run(probe_source, "solve", [Test(expected=0.8444218515250481)])
            assert first.verdict is Verdict.PASS
    assert seen[0] == seen[1]


def test_the_self_test_is_quick() -> None:
    assert len(selftest.ATTACKS) + len(selftest.SLOW_ATTACKS) >= 20
    assert len(selftest.HONEST) >= 25
    with Sandbox() as sandbox:
        started = time.monotonic()
        assert selftest.failures(sandbox.run_many, attacks=True) == []
        assert time.monotonic() - started < 4.0  # measured under 1 s on an idle machine; this one may be busy


def test_the_self_test_notices_what_is_not_contained(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(selftest.ATTACKS, "harmless", "pass")
    monkeypatch.setitem(selftest.HONEST, "impossible", ("def solve(): return open('/etc/passwd')", (), 1))
    found = selftest.failures(sandbox.run_many, attacks=True)
    assert len(found) == 2
    assert "'impossible'" in found[0]
    assert "'harmless'" in found[1]


def test_reports_come_in_the_order_of_the_jobs(sandbox: Sandbox) -> None:
    jobs = [
        Job(f"import time\ndef solve(): time.sleep({(i % 3) / 50}); return {i}", "solve", (Test(expected=i),)) for i in range(12)
    ]
    jobs[5] = replace(jobs[5], source="def solve(): return -1")
    verdicts = [report.verdict for report in sandbox.run_many(jobs)]
    assert verdicts == [Verdict.WRONG if i == 5 else Verdict.PASS for i in range(12)]


def test_share_of_tests_and_kept_verdicts(sandbox: Sandbox) -> None:
    source = "def solve(n):\n if n == 2:\n  while True: pass\n if n == 1: raise ValueError('no')\n return n"
    report = sandbox.run(source, "solve", [Test((n,), expected=n) for n in (0, 1, 2, 0)])
    assert report.tests == (Verdict.PASS, Verdict.ERROR, Verdict.TIMEOUT, Verdict.TIMEOUT)
    assert report.verdict is Verdict.ERROR
    assert report.passed == 0.25


def test_processor_time_is_the_limit_in_fractions_of_a_second(sandbox: Sandbox) -> None:
    tight = replace(BRISK, cpu_seconds=0.2)
    assert sandbox.run(BURN, "solve", [Test((0.12,), expected="done")], tight).verdict is Verdict.PASS
    report = sandbox.run(BURN, "solve", [Test((0.4,), expected="done")], tight)
    assert report.verdict is Verdict.TIMEOUT
    assert 0.2 <= report.cpu_seconds < 0.4


def test_sixteen_at_once_near_the_limit_all_pass() -> None:
    """Under a wall-clock limit of the same length every one of them would fail on a small machine."""
    limits = Limits(cpu_seconds=0.5)
    jobs = [Job(BURN, "solve", (Test((0.35,), expected="done"),)) for _ in range(16)]
    with Sandbox(workers=16, limits=limits) as sandbox:
        reports = sandbox.run_many(jobs)
    assert {report.verdict for report in reports} == {Verdict.PASS}
    assert max(report.wall_seconds for report in reports) > limits.cpu_seconds


def test_waiting_for_a_processor_does_not_use_up_the_wall_clock() -> None:
    """Ten at once need longer than the backstop on a small machine, but none of them sleeps."""
    limits = Limits(cpu_seconds=1.0, wall_seconds=1.5)
    with Sandbox(workers=10, limits=limits) as sandbox:
        reports = sandbox.run_many([Job(BURN, "solve", (Test((0.4,), expected="done"),))] * 10)
    assert {report.verdict for report in reports} == {Verdict.PASS}


def test_many_threads_share_one_sandbox(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(8) as threads:
        reports = list(threads.map(lambda n: sandbox.run(RIGHT, "solve", [Test((n, 1), expected=n + 1)], ROOMY), range(40)))
    assert {report.verdict for report in reports} == {Verdict.PASS}


def test_inputs_larger_than_a_socket_buffer_arrive(sandbox: Sandbox) -> None:
    numbers = list(range(200_000))
    assert sandbox.run("def solve(a): return len(a)", "solve", [Test((numbers,), expected=200_000)], ROOMY).passed == 1.0


def test_an_input_nobody_reads_ends_at_a_limit(sandbox: Sandbox) -> None:
    source = "import _sandbox.guest as g\ng.Link.receive = lambda s: __import__('time').sleep(100)\ndef solve(a): return 1"
    report = sandbox.run(source, "solve", [Test(("x" * 10**6,), expected=1)])
    assert report.verdict is Verdict.TIMEOUT


@pytest.mark.parametrize("expected", [object(), 1j, [range(3)]])
def test_tests_must_be_plain_data(sandbox: Sandbox, expected: object) -> None:
    with pytest.raises(TypeError):
        sandbox.run(RIGHT, "solve", [Test((2, 3), expected=expected)])
    with pytest.raises(ValueError, match="at least one"):
        sandbox.run(RIGHT, "solve", [])
    assert sandbox.run(RIGHT, "solve", [ADD]).passed == 1.0


@pytest.mark.parametrize("field", ["cpu_seconds", "memory_mb", "output_bytes", "processes", "open_files", "wall_seconds"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_limits_are_positive(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        Limits(**{field: value})


def test_infra_has_no_share() -> None:
    with pytest.raises(SandboxFault, match="why"):
        _ = Report(Verdict.INFRA, (Verdict.INFRA,), 0.0, 0.0, "why").passed


# Trusted functions on hostile text.


def test_call_returns_typed_values(sandbox: Sandbox) -> None:
    assert sandbox.call("operator:add", [(1,), (2.5,)]) == (1, 2.5)
    assert sandbox.call("builtins:sorted", ["ba"], {"reverse": True}) == ["b", "a"]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("9 ** 9 ** 9", Verdict.TIMEOUT),
        ("[0] * (1 << 40)", Verdict.MEMORY),
        ("1 / 0", Verdict.ERROR),
        ("object()", Verdict.ERROR),
        ("'x' * 10 ** 6", Verdict.OUTPUT_LIMIT),
        ("__import__('os')._exit(0)", Verdict.PROTOCOL),
        ("open('/etc/passwd').read()", Verdict.ERROR),
        ("__import__('os').fork()", Verdict.ERROR),
        ("__import__('ctypes').string_at(0)", Verdict.CRASH),
        ("__import__('time').sleep(100)", Verdict.TIMEOUT),
    ],
)
def test_call_bounds_what_hostile_text_does(sandbox: Sandbox, text: str, verdict: Verdict) -> None:
    with pytest.raises(CallError) as caught:
        sandbox.call("builtins:eval", [text], limits=BRISK)
    assert caught.value.verdict is verdict
    assert sandbox.call("builtins:eval", ["6 * 7"]) == 42


def test_call_sees_packages_and_may_use_alarms() -> None:
    pytest.importorskip("sympy")
    with Sandbox(workers=1, preload=("sympy",)) as sandbox:
        expression = "__import__('sympy').simplify('(x**2 - 1)/(x - 1)').__str__()"
        assert sandbox.call("builtins:eval", [expression]) == "x + 1"
        alarm = "(s := __import__('signal'), s.signal(s.SIGALRM, lambda *_: None), s.alarm(1), s.alarm(0))[-1]"
        assert sandbox.call("builtins:eval", [alarm]) == 1
        late = "__import__('mpmath').mpf(2).__float__()"
        assert sandbox.call("builtins:eval", [late]) == 2.0


def test_call_of_a_missing_function_is_an_error(sandbox: Sandbox) -> None:
    with pytest.raises(CallError, match="not defined"):
        sandbox.call("math:no_such_function")


# Faults of the machinery.


def wait_for_guest(pid: int) -> None:
    deadline = time.monotonic() + 10
    while len(family(pid)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("victim", [0, 1], ids=["warden", "server"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_killed_in_a_run_costs_a_retry_and_no_verdict(victim: int, number: int) -> None:
    with Sandbox(workers=1, limits=ROOMY) as sandbox, ThreadPoolExecutor(1) as thread:
        pid = sandbox.pids[0]
        before = family(pid)
        running = thread.submit(sandbox.run, BURN, "solve", [Test((0.5,), expected="done")])
        wait_for_guest(pid)
        os.kill(before[victim], number)
        if number == signal.SIGTERM and victim == 1:  # process 1 of a namespace ignores it
            os.kill(before[victim], signal.SIGKILL)
        assert running.result().verdict is Verdict.PASS
        assert sandbox.restarts == 1
        assert not any(os.path.exists(f"/proc/{member}/exe") for member in before)


def test_a_server_that_always_dies_is_a_fault_and_not_a_wrong_answer() -> None:
    stop = threading.Event()
    with Sandbox(workers=1, limits=ROOMY) as sandbox:

        def assassin() -> None:
            while not stop.wait(0.02):
                for pid in family(os.getpid())[1:]:
                    with contextlib.suppress(OSError):  # gone in the meantime
                        if len(family(pid)) >= 3 and b"_sandbox" in Path(f"/proc/{pid}/cmdline").read_bytes():
                            os.kill(pid, signal.SIGKILL)
                            break

        killer = threading.Thread(target=assassin)
        killer.start()
        try:
            job = Job(BURN, "solve", (Test((1.0,), expected="done"),))
            reports = sandbox.run_many([job])
            with pytest.raises(SandboxFault, match="3 attempts"):
                sandbox.run(job.source, job.entry, job.tests)
        finally:
            stop.set()
            killer.join()
        assert reports[0].verdict is Verdict.INFRA
        assert sandbox.run(RIGHT, "solve", [ADD]).verdict is Verdict.PASS


def test_a_frozen_server_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.sandbox.channel.RUN_PATIENCE", 2.5)
    with Sandbox(workers=1, limits=ROOMY) as sandbox:
        for member in family(sandbox.pids[0])[::-1]:
            os.kill(member, signal.SIGSTOP)
        assert sandbox.run(RIGHT, "solve", [ADD]).verdict is Verdict.PASS
        assert sandbox.restarts == 1


def test_closing_leaves_nothing_behind() -> None:
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    processes = len(family(os.getpid()))
    with Sandbox() as sandbox:
        sandbox.run(RIGHT, "solve", [ADD])
        sandbox.call("operator:add", [1, 2])
        sandbox.run_asserts("def f(x): return x", "f", "for i in (1, 2): assert f(i) == i")
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert len(family(os.getpid())) == processes


def test_servers_go_when_the_trainer_is_killed() -> None:
    program = (
        "import sys, time; from envs.sandbox import Sandbox; s = Sandbox(workers=1); "
        "print(s.pids[0], flush=True); s.run('while True: pass', 'f', [__import__('envs.sandbox').sandbox.Test()])"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with trainer:
        assert trainer.stdout is not None
        members = family(int(trainer.stdout.readline()))
        trainer.kill()
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{member}") for member in members):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_soak_of_ten_thousand_hostile_programs() -> None:
    """Nothing leaks: no process, no descriptor, no memory, and the honest programs in between all pass."""
    quick = [attack for attack in ATTACKS if Verdict.TIMEOUT not in attack.allowed and not attack.needs]
    honest = Job(RIGHT, "solve", (ADD,))
    jobs = [honest if i % 10 == 0 else Job((a := quick[i % len(quick)]).source, a.entry, a.tests) for i in range(2_000)]
    limits = Limits(cpu_seconds=0.5, memory_mb=128)
    with Sandbox(workers=2, limits=limits) as sandbox:
        sizes = []
        for _ in range(5):
            reports = sandbox.run_many(jobs)
            passed = [i for i, report in enumerate(reports) if report.verdict is Verdict.PASS]
            assert passed == list(range(0, 2_000, 10))
            assert not any(report.verdict is Verdict.INFRA for report in reports)
            members = [member for pid in sandbox.pids for member in family(pid)]
            resident = [int(Path(f"/proc/{m}/statm").read_text().split()[1]) for m in [os.getpid(), *members]]
            sizes.append((len(members), len(os.listdir("/proc/self/fd")), resident))
        assert sandbox.restarts == 0
    for processes, descriptors, resident in sizes[1:]:
        assert (processes, descriptors) == sizes[0][:2] == (4, sizes[0][1])
        assert sum(resident) * 4096 < sum(sizes[0][2]) * 4096 + (16 << 20)
