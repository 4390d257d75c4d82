"""One sandbox of the strongest tier for most tests, a canary to watch, and a way to count processes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.sandbox import Limits, Sandbox

from .attacks import SECRET

# For programs that run into a limit: small, because each of them takes all of it.
BRISK = Limits(cpu_seconds=0.2, memory_mb=128, wall_seconds=0.6)
# For all others: no verdict should hang on how long an import takes on a busy machine.
PATIENT = Limits(cpu_seconds=1.0, memory_mb=128)


@pytest.fixture(scope="session")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file only the trainer may read, and an environment variable that guests must not see."""
    path = tmp_path_factory.mktemp("canary") / "canary.py"
    path.write_text(SECRET)
    os.environ["SVF_CANARY"] = SECRET
    yield path
    del os.environ["SVF_CANARY"]


@pytest.fixture(scope="session")
def sandbox(canary: Path) -> Iterator[Sandbox]:
    """Two workers at the strongest tier this machine has."""
    with Sandbox(workers=2, limits=BRISK) as made:
        yield made


def family(pid: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry))
    found = [pid]
    for member in found:
        found += parents.get(member, [])
    return found
