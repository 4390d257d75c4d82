"""What can go wrong, and what becomes of it.

A mistake of the person at the keyboard (an unknown setting, a missing folder, an expert of another base) is a `UserError`: one
line that says what was expected, what was found and what to do, exit code 2, and nothing on disk is lost or half-written.

A fault of the machinery (a grader that died, an environment that raised) is data, never a wrong answer: the episode is
dropped and counted, and a run with too many of them stops with `FaultyRun`.

A step whose loss or gradient is not finite is skipped and counted; the state stays as it was. Too many in a row stop the
run with `Diverged`.
"""

import math


class UserError(Exception):
    """Expected, found, what to do: in one line. Exit code 2."""


class BaseError(UserError):
    """A base model that cannot be loaded or adapted."""


class ExpertError(UserError):
    """An expert file that is damaged or belongs to another base."""


def check_at_least(low: int, config: object, names: str, prefix: str = "") -> None:
    """UserError unless each of these fields, separated by spaces, is a finite number of at least `low`."""
    for name in names.split():
        value = getattr(config, name)
        if not low <= value < math.inf:
            raise UserError(f"{prefix}{name} must be at least {low}, not {value}")


class FaultyRun(Exception):
    """Too many episodes were lost to faults of the machinery."""


class Diverged(Exception):
    """Too many steps in a row had a loss or gradient that was not finite."""
