"""Base against expert on the same held-out questions, greedy: accuracies, their intervals and the paired difference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from svf_rl.base.load import Base
from svf_rl.errors import FaultyRun
from svf_rl.evaluate.stats import Interval, paired_difference, proportion
from svf_rl.progress import Progress
from svf_rl.rollout.episodes import play, split_size
from svf_rl.rollout.sampler import Sampling, draw_seed
from svf_rl.types import Episode


@dataclass(frozen=True)
class Comparison:
    """The answers of both to the same questions, in order; questions that either lost to a fault are left out."""

    before: list[Episode]
    after: list[Episode]

    @property
    def base(self) -> Interval:
        return accuracy(self.before)

    @property
    def expert(self) -> Interval:
        return accuracy(self.after)

    @property
    def difference(self) -> Interval:
        return paired_difference([right(e) for e in self.before], [right(e) for e in self.after])


def right(episode: Episode) -> float:
    """1 for an answer that earned the whole reward, else 0."""
    return float(episode.reward >= 1.0)


def accuracy(episodes: Sequence[Episode]) -> Interval:
    return proportion(int(sum(map(right, episodes))), len(episodes))


def answers(
    base: Base, env: Any, split: str, size: int, sampling: Sampling, seed: int = 0, what: str = "answering"
) -> list[Episode | None]:
    """One answer to each of the first `size` questions of a split, or to all if there are fewer; `what` names the live line."""
    size = split_size(env, split, size)
    with Progress().count(size, what) as done:
        return play(base, env, split, range(size), sampling, [draw_seed(seed, i) for i in range(size)], done)


def measures(env: Any, episodes: Sequence[Episode]) -> dict[str, float]:
    """What the environment measures beside the reward, such as strict accuracy and macro-F1; {} from one that measures nothing."""
    summarise = getattr(env.unwrapped, "summarise", None)
    return dict(summarise([e.info for e in episodes])) if callable(summarise) else {}


def compare(before: Sequence[Episode | None], after: Sequence[Episode | None]) -> Comparison:
    pairs = [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None]
    if not pairs:
        raise FaultyRun(f"no question of {len(before)} was answered by both: the environment failed; the reasons are above")
    return Comparison([b for b, _ in pairs], [a for _, a in pairs])


def show(comparison: Comparison, title: str, env: Any, samples: int = 3) -> None:
    """Print the table, what the environment measures, and sample answers: questions on which the two differ first."""
    console = Console(soft_wrap=False)
    table = Table(title=title)
    for column in ("", "right", "95 % interval", "questions"):
        table.add_column(column, justify="left" if not column else "right")
    rows = {"base": comparison.base, "expert": comparison.expert, "difference": comparison.difference}
    for name, interval in rows.items():
        sign = "+" if name == "difference" else ""
        value, low, high = (f"{100 * x:{sign}.1f}" for x in interval)
        table.add_row(name, f"{value} %", f"{low} … {high}", str(len(comparison.before)))
    before, after = measures(env, comparison.before), measures(env, comparison.after)
    for name in before.keys() & after.keys() - {"flexible"}:
        table.add_row(name, f"{100 * before[name]:.1f} → {100 * after[name]:.1f}", "", "")
    console.print(table)
    pairs = sorted(zip(comparison.before, comparison.after, strict=True), key=lambda pair: right(pair[0]) - right(pair[1]))
    for b, a in pairs[:samples]:
        console.print(b.prompt, markup=False, highlight=False)
        for name, episode in (("base", b), ("expert", a)):
            console.print(f"  {name:7}{episode.text!r}  reward {episode.reward:g}", markup=False, highlight=False)
