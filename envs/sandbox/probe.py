"""Which layers of isolation this machine has, found out by using each of them in a process of its own.

Design rule: a layer counts when it has just worked, never because a version number says so; and what is missing is
named together with what would bring it.
"""

import functools
import json
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass

from .tiers import FEATURES, Strength, strength, tier_name
from .worker import command

_REMEDIES = {
    "namespaces": (
        "allow user namespaces (sysctl user.max_user_namespaces > 0, kernel.unprivileged_userns_clone=1, "
        "kernel.apparmor_restrict_unprivileged_userns=0), or start the container with "
        "--security-opt seccomp=unconfined; Linux 5.12 or later"
    ),
    "landlock": "Linux 5.13 or later with landlock in the boot parameter lsm=, and a container profile that allows it",
    "seccomp": "Linux on x86_64 or aarch64 with CONFIG_SECCOMP_FILTER",
}
_PATIENCE = 60.0


@dataclass(frozen=True)
class Probe:
    """What the machine offers.

    Attributes:
        features: the layers that work.
        missing: layer → why it does not work, and what to change.
    """

    features: frozenset[str]
    missing: dict[str, str]

    @property
    def tier(self) -> str:
        """The name of the strongest tier available."""
        return tier_name(self.features)

    @property
    def strength(self) -> Strength:
        """What that tier amounts to."""
        return strength(self.features)

    @property
    def tiers(self) -> tuple[str, ...]:
        """Every tier available here, strongest first."""
        offered = [self.features, self.features - {"namespaces"}, self.features - {"landlock"}]
        offered += [self.features & {"seccomp"}, frozenset()]
        return tuple(dict.fromkeys(tier_name(frozenset(features)) for features in offered))


def probe(without: Collection[str] = ()) -> Probe:
    """Try every layer; the result is remembered for the process.

    Args:
        without: layers to treat as missing, to rehearse a weaker machine.
    Raises:
        ValueError: a name in `without` is not a layer.
    """
    if unknown := set(without) - set(FEATURES):
        raise ValueError(f"no such layers: {sorted(unknown)}; there are {FEATURES}")
    missing = {name: f"{why}. Remedy: {_REMEDIES[name]}" for name, why in _attempts().items() if why}
    missing |= dict.fromkeys(without, "left out on request")
    return Probe(frozenset(FEATURES).difference(missing), missing)


@functools.cache
def _attempts() -> dict[str, str]:
    if sys.platform != "linux":
        return dict.fromkeys(FEATURES, f"needs Linux, this is {sys.platform}")
    done = subprocess.run(command("attempt"), env={}, cwd="/", capture_output=True, timeout=_PATIENCE, check=False)
    try:
        found: dict[str, str] = json.loads(done.stdout)
    except ValueError:
        return dict.fromkeys(FEATURES, f"the probe died ({done.returncode}): {done.stderr[-300:].decode(errors='replace')}")
    return found
