"""One live line for anything that takes longer than two seconds: what, how far, the latest figures, time left."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


class Progress:
    """A tqdm line on standard error; `quiet` hides it (tests, and runs whose output goes to a file)."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bar: Any = None

    def steps(self, start: int, stop: int, what: str) -> Iterator[int]:
        """Yield start..stop-1 while showing the bar."""
        return self.over(range(start, stop), what, start, stop)

    def over(self, things: Sequence[T], what: str, done: int = 0, total: int | None = None) -> Iterator[T]:
        """Yield the things while showing the bar."""
        with tqdm(things, desc=what, initial=done, total=total, disable=self.quiet, dynamic_ncols=True) as bar:
            self._bar = bar
            yield from bar
        self._bar = None

    @contextmanager
    def count(self, total: int, what: str) -> Iterator[Callable[[int], None]]:
        """A line for a part of the work, gone when it is done; the yielded function is told how many more are finished."""
        with tqdm(total=total, desc=what, disable=self.quiet, dynamic_ncols=True, leave=False) as bar:
            yield bar.update

    def show(self, **figures: object) -> None:
        """Put the latest figures on the line."""
        if self._bar is not None:
            self._bar.set_postfix({key.replace("_", " "): value for key, value in figures.items()}, refresh=False)

    def say(self, text: str) -> None:
        """A line of its own on standard error, above the bar: standard output is for results."""
        if not self.quiet:
            tqdm.write(text, file=sys.stderr)
