"""Every attack is contained: no pass, no harm, no leak, nothing left behind, and the pool goes on as before."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from envs.sandbox import Job, Limits, Report, Sandbox, Test, Verdict

from .attacks import ADD, ATTACKS, CANARY, SECRET, Attack
from .conftest import BRISK, PATIENT, family

EASY = [attack for attack in ATTACKS if attack.easy]


def armed(attack: Attack, canary: Path) -> Job:
    """The attack, aimed at the canary."""
    return Job(attack.source.replace(CANARY, str(canary)), attack.entry, attack.tests)


def limits_of(attack: Attack) -> Limits:
    return BRISK if Verdict.TIMEOUT in attack.allowed else PATIENT


def run_all(sandbox: Sandbox, attacks: Iterable[Attack], canary: Path) -> dict[str, Report]:
    found = {}
    chosen = list(attacks)
    for limits in (BRISK, PATIENT):
        batch = [attack for attack in chosen if limits_of(attack) is limits]
        reports = sandbox.run_many([armed(attack, canary) for attack in batch], limits)
        found |= {attack.name: report for attack, report in zip(batch, reports, strict=True)}
    return found


def assert_unharmed(sandbox: Sandbox, canary: Path) -> None:
    """The canary is as it was, each server has one warden above it and nothing below, and an honest program passes."""
    assert canary.read_text() == SECRET
    assert [path.name for path in canary.parent.iterdir()] == [canary.name]
    assert [len(family(pid)) for pid in sandbox.pids] == [2, 2]
    assert sandbox.run("def solve(a, b): return a + b", "solve", [ADD]).verdict is Verdict.PASS
    assert sandbox.restarts == 0


def test_the_suite_is_large_and_its_names_are_unique() -> None:
    assert len(ATTACKS) >= 200
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    assert not any(Verdict.PASS in attack.allowed or Verdict.INFRA in attack.allowed for attack in ATTACKS)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack_is_contained(sandbox: Sandbox, canary: Path, attack: Attack) -> None:
    job = armed(attack, canary)
    report = sandbox.run(job.source, job.entry, job.tests, limits_of(attack))
    assert report.verdict in attack.allowed, report
    assert report.verdict in report.tests
    assert SECRET not in report.detail
    assert_unharmed(sandbox, canary)


@pytest.mark.parametrize("all_of_it", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["quick", "all"])
@pytest.mark.parametrize("missing", [("namespaces",), ("landlock",)], ids=lambda names: "no " + names[0])
def test_the_suite_holds_in_the_other_strong_tiers(canary: Path, missing: tuple[str, ...], all_of_it: bool) -> None:
    with Sandbox(workers=2, limits=BRISK, without=missing) as sandbox:
        # In the quick form without those that run into a limit, which works alike in every tier.
        expected = [attack for attack in ATTACKS if attack.needs not in missing and (all_of_it or limits_of(attack) is PATIENT)]
        reports = run_all(sandbox, expected, canary)
        assert {a.name: reports[a.name] for a in expected if reports[a.name].verdict not in a.allowed} == {}
        assert_unharmed(sandbox, canary)


@pytest.mark.slow
def test_the_suite_holds_with_seccomp_alone(canary: Path) -> None:
    with Sandbox(workers=2, limits=BRISK, without=("namespaces", "landlock"), require="degraded") as sandbox:
        reports = run_all(sandbox, [attack for attack in ATTACKS if not attack.needs], canary)
        assert {n: report for n, report in reports.items() if report.verdict in (Verdict.PASS, Verdict.INFRA)} == {}
        assert_unharmed(sandbox, canary)


def test_easy_attacks_succeed_without_isolation(canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the suite would be testing programs that never work."""
    monkeypatch.setenv("SVF_RL_ALLOW_NO_ISOLATION", "1")
    with Sandbox(workers=2, limits=BRISK, require="none", without=("namespaces", "landlock", "seccomp")) as sandbox:
        assert sandbox.tier == "rlimits"
        reports = run_all(sandbox, EASY, canary)
    assert len(EASY) >= 30
    assert {name for name, report in reports.items() if report.verdict is not Verdict.PASS} == set()


def test_no_case_takes_much_longer_than_its_limit(sandbox: Sandbox) -> None:
    sleeper = sandbox.run("import time\ndef solve(): time.sleep(60)", "solve", [Test()])
    spinner = sandbox.run("def solve():\n  while True: pass", "solve", [Test()])
    assert sleeper.wall_seconds < BRISK.wall + 0.7
    assert spinner.cpu_seconds < BRISK.cpu_seconds + 0.2


def test_an_attack_leaves_nothing_for_the_next_program(canary: Path) -> None:
    """With one worker both run on the same server."""
    plant = "import sys, builtins, os\nbuiltins.mark = sys.mark = os.mark = 1\ndef solve(): return 1"
    look = "import sys, builtins, os\ndef solve(): return [hasattr(m, 'mark') for m in (sys, builtins, os)]"
    with Sandbox(workers=1, limits=replace(BRISK, cpu_seconds=1.0)) as sandbox:
        assert sandbox.run(plant, "solve", [Test(expected=1)]).verdict is Verdict.PASS
        assert sandbox.run(look, "solve", [Test(expected=[False] * 3)]).verdict is Verdict.PASS
