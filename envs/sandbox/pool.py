"""The sandbox as the trainer sees it: choose a tier, keep warm servers, run programs, retry faults of the machinery.

    with Sandbox(workers=2) as sandbox:
        report = sandbox.run("def add(a, b): return a + b", "add", [Test((2, 3), expected=5)])
        report.verdict, report.passed

Design rule: the sandbox refuses at the start, naming everything that is missing, rather than at the first reward; and a
failure of the machinery is an exception, never a verdict of wrong.

Differs from the usual grader (a forked process with a guard, or a shell script's exit status):
1. Expected values stay here; programs run elsewhere and send values back as data.
2. Processor time is the limit, so a reward does not depend on how busy the machine is.
3. No weaker tier is ever used without being asked for by name, at the start or later.
"""

import os
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any, TypeVar

from . import asserts, judge, selftest
from .channel import WorkerLost
from .crew import Crew
from .probe import Probe, probe
from .records import Job, Limits, Report, SandboxFault, SandboxUnavailable, Test, Verdict
from .tiers import PRELOAD, SEALED_PRELOAD, Strength
from .worker import Profile, Worker

CONSENT = "SVF_RL_ALLOW_NO_ISOLATION"
CALL_LIMITS = Limits(cpu_seconds=5.0, memory_mb=1024)
ATTEMPTS = 3
_passed_selftest: set[frozenset[str]] = set()
T = TypeVar("T")


class Sandbox:
    """Warm guest servers behind a few methods; use as a context manager. Methods may be called from any thread.

    Args:
        workers: programs run at once.
        limits: for each program, unless a call brings its own.
        require: the weakest tier to accept: "strong", "degraded" or "none". The strongest there is gets used. "none"
            needs the environment variable SVF_RL_ALLOW_NO_ISOLATION=1 besides.
        preload: modules for the functions given to `call`, imported once.
        call_limits: for each `call`.
        without: layers to treat as missing, to rehearse a weaker machine.
    Raises:
        SandboxUnavailable: the machine is too weak for `require`, or the self-test failed.
        SandboxFault: the servers cannot be started.
    """

    def __init__(
        self,
        workers: int = 2,
        limits: Limits | None = None,
        require: str = "strong",
        *,
        preload: Sequence[str] = (),
        call_limits: Limits = CALL_LIMITS,
        without: Collection[str] = (),
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self._probe = _acceptable(probe(without), Strength[require.upper()])
        self._limits = limits or Limits()
        self._call_limits = call_limits
        self._preload = tuple(preload)
        self._workers = workers
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._extra: dict[str, Crew] = {}
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="sandbox")
        self._crew = self._start(self._program_profile(), workers, _try_out)
        try:
            self._selftest()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def tier(self) -> str:
        """The layers in force, such as "namespaces+landlock+seccomp"; "rlimits" means no isolation."""
        return self._probe.tier

    @property
    def restarts(self) -> int:
        """Servers replaced so far."""
        return self._crew.restarts + sum(crew.restarts for crew in list(self._extra.values()))

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the wardens of the idle servers for programs; each has one child, the server."""
        return tuple(worker.pid for worker in self._crew.workers())

    def run(self, source: str, entry: str, tests: Sequence[Test], limits: Limits | None = None) -> Report:
        """Run a program on its tests.

        Args:
            source: Python source, of any origin.
            entry: the function it should define.
            tests: at least one.
            limits: instead of the sandbox's.
        Raises:
            ValueError, TypeError: no tests, or one that is not plain data.
            SandboxFault: the machinery failed three times.
        """
        if not tests:
            raise ValueError("a program needs at least one test")
        return self._attempt(self._crew, lambda worker: judge.grade(worker, source, entry, tests, limits or self._limits))

    def run_many(self, jobs: Iterable[Job], limits: Limits | None = None) -> list[Report]:
        """Run programs, as many at once as there are workers; the reports are in the order of the jobs.

        A job for which the machinery failed three times gets the verdict `infra`, whose `passed` raises.

        Raises:
            ValueError, TypeError: as for `run`.
        """
        return list(self._threads.map(lambda job: self._run_or_infra(job, limits), jobs))

    def run_asserts(self, source: str, entry: str, test: str, preamble: str = "", limits: Limits | None = None) -> Report:
        """Run a program against assertions written as source, as HumanEval and MBPP have them.

        Assertions over literals become tests, one each. If any cannot, all of them run as they are, as one test, in a
        second guest that never holds model code and calls the program in the first by sending values.

        Args:
            source: the program.
            entry: its function.
            test: a function `check(candidate)`, or assert statements that call `entry`. From a trusted data set.
            preamble: trusted source the assertions may refer to, such as HumanEval's prompt.
            limits: instead of the sandbox's; for each of the two guests.
        Raises:
            ValueError: the assertions do not parse or load.
            SandboxFault: the machinery failed three times.
        """
        tests = asserts.convert(test, entry)
        if tests:
            return self.run(source, entry, tests, limits)
        job = (source, entry, asserts.as_check(test, entry), preamble)
        checkers = self._second("checker", lambda: self._start(self._program_profile(), 1, _try_out))

        def both(checker: Worker) -> Report:
            with self._crew.borrow() as solver:
                return judge.check(solver, checker, job, limits or self._limits)

        return self._attempt(checkers, both)

    def call(
        self,
        target: str,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        limits: Limits | None = None,
    ) -> Any:
        """Run one of our own functions on hostile text, in a guest that can be killed, and return its value.

        The guest may read installed packages and the packages of `preload`. This contains what the text makes a library
        do; it cannot keep the text from forging the function's value if the library executes it in the same process.

        Args:
            target: "module:function", importable without side effects.
            args, kwargs: plain data.
            limits: instead of `call_limits`.
        Raises:
            CallError: the function raised, met a limit, or returned what is not plain data.
            SandboxFault: the machinery failed three times.
        """
        module = target.partition(":")[0]
        crew = self._second("call", lambda: self._start(self._call_profile(module), self._workers, lambda worker: None))
        test = Test(tuple(args), dict(kwargs or {}))
        return self._attempt(crew, lambda worker: judge.call(worker, target, test, limits or self._call_limits))

    def close(self) -> None:
        """Wait for runs in progress and end all servers. The sandbox is of no use afterwards."""
        if os.getpid() == self._owner:  # a forked copy of the trainer must leave them alone
            self._threads.shutdown()
            for crew in (self._crew, *self._extra.values()):
                crew.close()

    def _attempt(self, crew: Crew, action: Callable[[Worker], T]) -> T:
        if os.getpid() != self._owner:
            raise SandboxFault("a sandbox cannot be used in a fork of the process that made it; make one there")
        lost: list[str] = []
        while len(lost) < ATTEMPTS:
            try:
                with crew.borrow() as worker:
                    return action(worker)
            except WorkerLost as error:
                lost.append(str(error))
        raise SandboxFault(f"{ATTEMPTS} attempts failed: " + "; ".join(lost))

    def _run_or_infra(self, job: Job, limits: Limits | None) -> Report:
        try:
            return self.run(job.source, job.entry, job.tests, limits)
        except SandboxFault as fault:
            return Report(Verdict.INFRA, (Verdict.INFRA,) * len(job.tests), 0.0, 0.0, str(fault))

    def _start(self, profile: Profile, size: int, inspect: Callable[[Worker], None]) -> Crew:
        try:
            return Crew(profile, size, inspect)
        except WorkerLost as error:
            raise SandboxFault(f"a guest server did not start: {error}") from None

    def _second(self, name: str, start: Callable[[], Crew]) -> Crew:
        with self._lock:
            if name not in self._extra:
                self._extra[name] = start()
            return self._extra[name]

    def _program_profile(self) -> Profile:
        sealed = self._probe.strength is Strength.DEGRADED
        return Profile(self._probe.features, SEALED_PRELOAD if sealed else PRELOAD)

    def _call_profile(self, module: str) -> Profile:
        ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        path = tuple(dict.fromkeys(entry for entry in (*sys.path, ours) if os.path.isdir(entry)))
        readable = [entry for entry in path if entry.startswith((sys.prefix, sys.base_prefix)) or "-packages" in entry]
        modules = tuple(dict.fromkeys((*self._preload, module)))
        for package in {name.partition(".")[0] for name in modules}:
            spec = find_spec(package)
            readable += (spec.submodule_search_locations or ()) if spec else ()
        return Profile(self._probe.features, modules, path, tuple(readable))

    def _selftest(self) -> None:
        features = self._probe.features
        if features in _passed_selftest:
            return
        failed = selftest.failures(self.run_many, attacks=self._probe.strength is not Strength.NONE)
        if failed:
            raise SandboxUnavailable(f"self-test of the tier {self.tier} failed: " + "; ".join(failed))
        _passed_selftest.add(features)


def _acceptable(found: Probe, required: Strength) -> Probe:
    """The probe's result, if it is enough.

    Raises:
        SandboxUnavailable: it is not, or there is no consent to run without isolation.
    """
    missing = "\n".join(f"  {name}: {why}" for name, why in found.missing.items())
    if sys.platform != "linux":
        raise SandboxUnavailable(f"the sandbox needs Linux:\n{missing}")
    if found.strength < required:
        raise SandboxUnavailable(
            f"require={required.name.lower()!r}, but this machine offers {found.strength.name.lower()!r} "
            f"({found.tier}). Missing:\n{missing}\nA weaker tier is used only when `require` names it."
        )
    if found.strength is Strength.NONE and os.environ.get(CONSENT) != "1":
        raise SandboxUnavailable(
            f"this machine isolates nothing; running model-written code all the same needs {CONSENT}=1 as well as "
            f"require='none'. Missing:\n{missing}"
        )
    return found


def _try_out(worker: Worker) -> None:
    """One honest program on a server that has just started.

    Raises:
        WorkerLost: it cannot even do that.
    """
    job = selftest.honest_job("arithmetic")
    report = judge.grade(worker, job.source, job.entry, job.tests, selftest.LIMITS)
    if report.verdict is not Verdict.PASS:
        raise WorkerLost(f"a fresh guest server got {report.verdict} ({report.detail}) for a right program")
