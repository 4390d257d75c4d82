"""What is forgotten when tasks are learnt one after another.

    R[i][j]   accuracy on task j after learning tasks 1..i; R[0] is the base
    average accuracy    mean over j of R[T][j]
    backward transfer   mean over j < T of R[T][j] - R[j][j]
    forgetting          mean over j < T of max over 1 <= l < T of R[l][j], minus R[T][j]
    forward transfer    mean over j > 1 of R[j-1][j] - R[0][j]

Source: Lopez-Paz and Ranzato 2017 (arXiv 1706.08840), equations 2 to 4; forgetting: Chaudhry et al. 2018 (arXiv 1801.10112).
Differs from the source: forward transfer is counted from the pretrained base, there from a model with random weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from svf_rl.base.load import BaseConfig
from svf_rl.errors import check_at_least


@dataclass(frozen=True)
class ForgettingConfig:
    """`svf-rl forgetting`; configs/forgetting.yaml says what each key does."""

    base: BaseConfig = field(default_factory=BaseConfig)
    tasks: str = "[math,code,classify]"
    adapters: str = "[full,lora,svf]"
    learning_rates: str = "[0.0001,0.001,0.01]"
    steps: int = 40
    size: int = 300
    seed: int = 0
    out: str = "runs/forgetting"

    def __post_init__(self) -> None:
        check_at_least(1, self, "steps size")


@dataclass(frozen=True)
class Transfer:
    """The four figures of one way of learning, shares of right answers; positive backward and forward transfer is good."""

    average_accuracy: float
    backward_transfer: float
    forgetting: float
    forward_transfer: float


def transfer(accuracy: Sequence[Sequence[float]]) -> Transfer:
    """The figures of a table [tasks + 1, tasks], row 0 the base. ValueError for another shape, or fewer than two tasks."""
    tasks = len(accuracy) - 1
    if tasks < 2 or any(len(row) != tasks for row in accuracy):
        raise ValueError(f"expected tasks + 1 rows of at least two tasks, found {[len(row) for row in accuracy]}")
    last, old, new = accuracy[tasks], range(tasks - 1), range(1, tasks)
    return Transfer(
        sum(last) / tasks,
        sum(last[j] - accuracy[j + 1][j] for j in old) / (tasks - 1),
        sum(max(accuracy[i][j] for i in range(1, tasks)) - last[j] for j in old) / (tasks - 1),
        sum(accuracy[j][j] - accuracy[0][j] for j in new) / (tasks - 1),
    )
