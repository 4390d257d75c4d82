"""The glossary: the frozen records that flow through the system.

    base weights -> Factors -> adapted model <- Expert
    adapted model x environment -> Completion -> Episode -> Group -> gradient of z

base        a frozen pretrained causal language model.
matrix      one adapted weight of the base, `W` [out, in], named by its module path.
z           the trained vector of a matrix, length r; z = 1 is the base.
expert      one z for every adapted matrix.
completion  the token ids a model wrote after a prompt, with their log-probabilities.
episode     one prompt, everything that was written after it, and the reward.
group       the G episodes of one prompt; their mean reward is the baseline.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor


class Factors(NamedTuple):
    """Thin SVD of one weight W [out, in]: W = U diag(s) Vt + what truncation left out. float32."""

    U: Float[Tensor, "out r"]
    s: Float[Tensor, " r"]
    Vt: Float[Tensor, "r in"]


@dataclass(frozen=True)
class Expert:
    """z of every adapted matrix, float32, and where it comes from (see svf/expert.py for the fields of `about`)."""

    z: Mapping[str, Float[Tensor, " r"]]
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """What a model wrote: ids with the stop token if one came, their log-probabilities in nats, and why it ended.

    stop is "stop" (a stop token) or "length" (the limit, or the end of the context).
    """

    ids: list[int]
    logprobs: list[float]
    stop: str


@dataclass(frozen=True)
class Episode:
    """One prompt and what followed. `ids` holds every token in order, `own` marks the model's, `logprobs` are those of its own.

    text: everything after the prompt.  said: the model's turns, one unless the environment replied.  stop: of the last turn.
    info: what the environment measured.
    """

    ids: list[int]
    own: list[bool]
    logprobs: list[float]
    reward: float
    verdict: str
    stop: str
    prompt: str
    text: str
    said: tuple[str, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)


Group = list[Episode]
