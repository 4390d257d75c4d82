"""The base is asked which of the experts' tasks a prompt is.

    score(label) = mean log p(label | question) - mean log p(label | question about nothing)

The second term (`calibrate`) takes away what the base says whatever it is asked. An answer that names no expert's task is
abstention, and so is one that does not lead the next by `margin` nats per token: on unrelated text no label is sure. `decode` is
the published form: the base writes its answer and the last label named in it counts.

Source: Transformer-Squared, section 3.2 (prompt engineering); calibration: Zhao et al. 2021 (arXiv 2102.09690).
Differs from the source (SakanaAI/self-adaptive-llms): labels are scored from one prefill instead of decoding text, and "other"
restores the base instead of keeping the expert that was loaded last.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from svf_rl.base.load import Base
from svf_rl.dispatch.dispatcher import BASE, Decision, using, weigh
from svf_rl.dispatch.library import Library, label
from svf_rl.dispatch.likelihood import label_scores
from svf_rl.errors import UserError
from svf_rl.rollout.sampler import Sampling, sample
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.types import Expert

NOTHING = ("", "N/A", "[MASK]")
QUESTION = "{prompt}\n\nWhich kind of task is this: {labels} or other?\nKind:"


@dataclass(frozen=True)
class PromptConfig:
    """How the base is asked; configs/dispatch/prompt.yaml."""

    name: str = "prompt"
    question: str = QUESTION
    labels: str | None = None
    other: str = "other"
    decode: bool = False
    calibrate: bool = True
    margin: float = 0.5
    soft: bool = False

    def __post_init__(self) -> None:
        if "{prompt}" not in self.question or "{labels}" not in self.question:
            raise UserError(f"dispatch.question must hold {{prompt}} and {{labels}}, found {self.question!r}")


@dataclass(frozen=True)
class PromptDispatcher:
    """experts: their names and, in the same order, their labels.  router: the expert that is asked, or None for the base."""

    base: Base
    adapter: SVFAdapter
    experts: tuple[str, ...]
    own: tuple[str, ...]
    config: PromptConfig
    router: Expert | None = None
    _offsets: list[Tensor] = field(default_factory=list, init=False)

    @property
    def labels(self) -> list[str]:
        """The labels asked for, and last the one of none of them."""
        named = [one.strip() for one in self.config.labels.split(",")] if self.config.labels else list(dict.fromkeys(self.own))
        return [*named, self.config.other]

    def question(self, prompt: str) -> str:
        named = ", ".join(self.labels[:-1])
        return self.config.question.replace("{labels}", named).replace("{prompt}", prompt)

    def decide(self, prompts: Sequence[str]) -> Decision:
        """Weights of the experts for each prompt. UserError for a prompt that leaves no room for the question."""
        begun = time.monotonic()
        asked = [self.base.codec.prompt(self.question(prompt)) for prompt in prompts]
        with using(self.adapter, self.router):
            scores, tokens = self._decoded(asked) if self.config.decode else self._scored(asked)
        lead = scores.topk(2).values.diff()[:, 0].neg()
        sure = lead >= (0.0 if self.config.decode else self.config.margin)  # not so for NaN
        shares = weigh(scores, self.config.soft and not self.config.decode).masked_fill(~sure[:, None], 0.0)
        index = {one: k for k, one in enumerate(self.labels[:-1])}
        columns = [shares[:, index[own]] if own in index else torch.zeros(len(shares)) for own in self.own]
        chosen = [self.labels[int(best)] if certain else "" for best, certain in zip(scores.argmax(-1), sure.tolist(), strict=True)]
        return Decision(
            torch.stack(columns, -1),
            [self.experts[self.own.index(one)] if one in self.own else BASE for one in chosen],
            [dict(zip(self.labels, row, strict=True)) for row in scores.tolist()],
            time.monotonic() - begun,
            sum(map(len, asked)) + tokens,
        )

    def _scored(self, asked: Sequence[list[int]]) -> tuple[Float[Tensor, "batch labels"], int]:
        ids = [self.base.codec.encode(self._space() + one) for one in self.labels]
        if self.config.calibrate and not self._offsets:
            nothing = [self.base.codec.prompt(self.question(text)) for text in NOTHING]
            self._offsets.append(label_scores(self.base, nothing, ids).mean(0))
        scores = label_scores(self.base, asked, ids)
        return (scores - self._offsets[0] if self.config.calibrate else scores), sum(map(len, ids)) * len(asked)

    def _decoded(self, asked: Sequence[list[int]]) -> tuple[Float[Tensor, "batch labels"], int]:
        written = sample(self.base, asked, Sampling(16, 0.0), [0] * len(asked))
        last = [last_label(self.base.codec.decode(c.ids), self.labels) for c in written]
        picked = torch.tensor([self.labels.index(one or self.config.other) for one in last])
        return torch.nn.functional.one_hot(picked, len(self.labels)).float(), sum(len(c.ids) for c in written)

    def _space(self) -> str:
        """A label continues the prompt's text, or, under a chat template, begins a text."""
        codec = self.base.codec
        return " " if codec.decode(codec.prompt("x")).endswith("x") else ""


def last_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that the text names last, whatever its case; None if it names none."""
    longest_first = sorted(labels, key=len, reverse=True)
    found = re.findall(rf"(?<!\w)({'|'.join(map(re.escape, longest_first))})(?!\w)", text, re.IGNORECASE)
    return next((one for one in labels if found and one.lower() == found[-1].lower()), None)


def make_prompt(base: Base, adapter: SVFAdapter, library: Library, config: PromptConfig) -> PromptDispatcher:
    """library: the experts that answer."""
    return PromptDispatcher(base, adapter, tuple(library), tuple(label(e) for e in library.values()), config)
