"""What the machine has is found out by trying; too little is refused at the start, in words that help."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.sandbox import Probe, Sandbox, SandboxUnavailable, Strength, Test, Verdict, probe, selftest
from envs.sandbox.crew import Crew
from envs.sandbox.tiers import FEATURES, strength, tier_name
from envs.sandbox.worker import Profile

from .attacks import ADD

RIGHT = "def solve(a, b): return a + b"


def test_names_and_strengths() -> None:
    assert strength(frozenset(FEATURES)) is Strength.STRONG
    assert strength(frozenset({"landlock", "seccomp"})) is Strength.STRONG
    assert strength(frozenset({"namespaces", "seccomp"})) is Strength.STRONG
    assert strength(frozenset({"seccomp"})) is Strength.DEGRADED
    assert strength(frozenset({"namespaces", "landlock"})) is Strength.NONE
    assert tier_name(frozenset(FEATURES)) == "namespaces+landlock+seccomp"
    assert tier_name(frozenset()) == "rlimits"


def test_probe_reports_what_is_missing_and_the_remedy() -> None:
    assert Probe(frozenset(), {}).tiers == ("rlimits",)
    found = probe()
    for name in FEATURES:
        assert (name in found.features) != (name in found.missing)
    assert all("Remedy:" in why for why in found.missing.values())
    assert found.tiers[0] == found.tier
    with pytest.raises(ValueError, match="no such layers"):
        probe(without=("walls",))


def test_too_weak_is_refused_by_name() -> None:
    with pytest.raises(SandboxUnavailable, match=r"(?s)require='strong'.*'degraded'.*namespaces: .*landlock: "):
        Sandbox(without=("namespaces", "landlock"))
    with pytest.raises(SandboxUnavailable, match=r"(?s)require='degraded'.*'none'.*seccomp: "):
        Sandbox(without=("seccomp",), require="degraded")


def test_a_weaker_tier_needs_consent_and_then_says_its_name() -> None:
    with Sandbox(workers=1, without=("namespaces", "landlock"), require="degraded") as sandbox:
        assert sandbox.tier == "seccomp"
        assert sandbox.run(RIGHT, "solve", [ADD]).verdict is Verdict.PASS
        assert sandbox.run("def solve(): return open('/etc/passwd').read()[:0]", "solve", [Test(expected="")]).passed == 0


def test_no_isolation_needs_a_second_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SVF_RL_ALLOW_NO_ISOLATION", raising=False)
    with pytest.raises(SandboxUnavailable, match="SVF_RL_ALLOW_NO_ISOLATION=1"):
        Sandbox(without=FEATURES, require="none")
    monkeypatch.setenv("SVF_RL_ALLOW_NO_ISOLATION", "1")
    with Sandbox(workers=1, without=FEATURES, require="none") as sandbox:
        assert sandbox.tier == "rlimits"


def test_consent_to_less_still_gets_the_most() -> None:
    with Sandbox(workers=1, require="degraded") as sandbox:
        assert sandbox.tier == probe().tier


def test_a_server_that_comes_back_weaker_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from envs.sandbox.worker import Worker

    crew = Crew(Profile(probe().features), 1, lambda worker: None)
    try:
        with crew.borrow() as worker:
            worker.kill()
            worker.busy = True
        monkeypatch.setattr(Worker, "hello", lambda self: frozenset({"seccomp"}))
        with pytest.raises(SandboxUnavailable, match="came up as seccomp"), crew.borrow():
            pass
    finally:
        crew.close()


def test_other_platforms_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxUnavailable, match="needs Linux"):
        Sandbox(require="none")


def test_a_failed_self_test_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.sandbox.pool._passed_selftest", set())
    monkeypatch.setattr(selftest, "ATTACKS", {"harmless": "pass"})
    with pytest.raises(SandboxUnavailable, match="'harmless'"):
        Sandbox(workers=1)


# A container's usual profile: no new namespaces, whoever asks. The filter is our own, with another list.
CONTAINER = """
import ctypes, os, struct, sys
sys.path[:0] = {path!r}
from envs.sandbox import kernel
deny = [272, 308, 165, 435, 155]  # unshare setns mount clone3 pivot_root
code = [(0x20, 0, 0, 0)]
for number in deny:
    code += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | (38 if number == 435 else 1))]
code.append((0x06, 0, 0, 0x7FFF0000))
raw = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code), ctypes.addressof(raw)))
kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
kernel.prctl(kernel.PR_SET_SECCOMP, 2, ctypes.addressof(header))
from envs.sandbox import Sandbox, Test, probe
assert "user.max_user_namespaces" in probe().missing["namespaces"], probe()
with Sandbox(workers=1) as sandbox:
    report = sandbox.run("def f(x): return x + 1", "f", [Test((1,), expected=2)])
    print(sandbox.tier, report.verdict)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the emulation names x86_64 system calls")
@pytest.mark.skipif("landlock" not in probe().features, reason="needs Landlock")
def test_in_a_container_that_forbids_namespaces_the_next_tier_is_used() -> None:
    done = subprocess.run([sys.executable, "-c", CONTAINER.format(path=sys.path)], capture_output=True, text=True)
    assert done.stdout.split() == ["landlock+seccomp", "pass"], done.stderr


# The package without its parent, whose __init__ needs gymnasium, run by an interpreter that any user may read.
ORDINARY = """
import sys, types, os
envs = types.ModuleType("envs")
envs.__path__ = [{folder!r}]
sys.modules["envs"] = envs
os.setgroups([])
os.setresgid(12345, 12345, 12345)
os.setresuid(12345, 12345, 12345)
from envs.sandbox import Sandbox, Test
for missing in ((), ("namespaces",), ("landlock",)):
    with Sandbox(workers=2, without=missing) as sandbox:
        report = sandbox.run("import sqlite3, os\\ndef f(x): return x + 1", "f", [Test((1,), expected=2)])
        print(sandbox.tier, report.verdict)
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that any user may read. Not one of pytest's: every session that starts closes those of all the others."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.skipif(probe().missing != {}, reason="needs every layer")
def test_an_ordinary_user_gets_every_tier(public: Path) -> None:
    import envs

    python = next((p for p in ("/usr/bin/python3", "/usr/local/bin/python3") if os.path.exists(p)), "")
    version = subprocess.run([python, "-V"], capture_output=True, text=True).stdout if python else ""
    if not version.startswith(("Python 3.11", "Python 3.12", "Python 3.13")):
        pytest.skip("no interpreter that another user could read")
    shutil.copytree(os.path.join(envs.__path__[0], "sandbox"), public / "sandbox")
    done = subprocess.run([python, "-B", "-c", ORDINARY.format(folder=str(public))], capture_output=True, text=True)
    expected = ["namespaces+landlock+seccomp", "landlock+seccomp", "namespaces+seccomp"]
    assert done.stdout.splitlines() == [f"{tier} pass" for tier in expected], done.stderr
