"""Name to dispatcher: the table of first passes, and the settings of the commands that use them."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from svf_rl.base.load import Base, BaseConfig
from svf_rl.dispatch.classifier import ClassifierConfig, make_classifier
from svf_rl.dispatch.dispatcher import BASE, Dispatcher, Fixed
from svf_rl.dispatch.fewshot import FewshotConfig, make_fewshot
from svf_rl.dispatch.library import Library, specialists
from svf_rl.dispatch.probe import ProbeConfig, make_probe
from svf_rl.dispatch.prompt import PromptConfig, make_prompt
from svf_rl.errors import UserError
from svf_rl.progress import Progress
from svf_rl.rollout.episodes import EnvConfig
from svf_rl.svf.adapter import SVFAdapter


@dataclass(frozen=True)
class NoneConfig:
    """No first pass; configs/dispatch/none.yaml. weights: of the experts in order of name, "0.5,0.5"."""

    name: str = "none"
    weights: str | None = None


DISPATCHERS: dict[str, type] = {
    "prompt": PromptConfig,
    "classifier": ClassifierConfig,
    "probe": ProbeConfig,
    "fewshot": FewshotConfig,
    "none": NoneConfig,
}


@dataclass(frozen=True)
class GenerateConfig:
    """`svf-rl generate`; configs/generate.yaml says what each key does."""

    base: BaseConfig = field(default_factory=BaseConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    dispatch: Any = field(default_factory=ProbeConfig)  # of DISPATCHERS
    experts: str | None = None
    adapter: str | None = None
    prompt: str = ""
    max_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    explain: bool = False
    allow_other_base: bool = False

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise UserError('expected a prompt, found none; for example svf-rl generate "54 + 13 ="')
        if self.max_tokens < 1 or not 0 <= self.temperature < math.inf:
            raise UserError(f"max_tokens must be at least 1, temperature at least 0; found {self.max_tokens}, {self.temperature}")
        if self.experts is not None and self.adapter is not None:
            raise UserError("expected experts to choose from or one adapter, found both; give one of them")
        if self.experts is None and self.adapter is None and not isinstance(self.dispatch, NoneConfig):
            raise UserError("expected experts=<folder or [files]> to choose from, found none; or give dispatch=none")


@dataclass(frozen=True)
class ComposeConfig:
    """`svf-rl compose`; configs/compose.yaml says what each key does."""

    base: BaseConfig = field(default_factory=BaseConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    dispatch: Any = field(default_factory=FewshotConfig)
    experts: str = "experts"
    run_dir: str | None = None
    test_size: int = 1000
    seed: int = 0
    allow_other_base: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.dispatch, FewshotConfig):
            raise UserError(f"compose searches a mixture: expected dispatch=fewshot, found {self.dispatch.name!r}")
        if self.test_size < 1:
            raise UserError(f"test_size must be at least 1, not {self.test_size}")


@dataclass(frozen=True)
class ExpertsConfig:
    """`svf-rl experts`; configs/experts.yaml says what each key does."""

    experts: str = "experts"


def make_dispatcher(
    base: Base, adapter: SVFAdapter, everyone: Library, config: Any, env: EnvConfig, seed: int, progress: Progress
) -> tuple[Library, Dispatcher]:
    """The experts that answer, and what decides between them. env: the task of a few-shot mixture. The adapter is installed."""
    if isinstance(config, NoneConfig):
        return everyone, _fixed(everyone, config.weights)
    library = specialists(everyone)
    if not library:
        raise UserError("the only experts found say which task a prompt is, none answers; add the experts that do")
    match config:
        case PromptConfig():
            return library, make_prompt(base, adapter, library, config)
        case ClassifierConfig():
            return library, make_classifier(base, adapter, library, config, everyone)
        case ProbeConfig():
            return library, make_probe(base, adapter, library, config, progress)
    return library, make_fewshot(base, adapter, library, config, env, seed, progress)


def _fixed(library: Library, text: str | None) -> Fixed:
    """The weights given, 1 for a single expert, or no expert at all."""
    if text is None and len(library) > 1:
        raise UserError(f"dispatch=none takes one expert, found {', '.join(library)}; give one, dispatch.weights, or a dispatch")
    try:
        weights = [1.0] * len(library) if text is None else [float(one) for one in text.strip("[]").split(",")]
    except ValueError as error:
        raise UserError(f"dispatch.weights must be numbers such as 0.5,0.5; found {text!r}") from error
    if len(weights) != len(library):
        raise UserError(f"expected one weight for each of the experts {', '.join(library) or '(none)'}; found {text!r}")
    if not all(math.isfinite(w) and w >= 0 for w in weights):
        raise UserError(f"dispatch.weights must be finite and not negative; found {text!r}")
    named = " + ".join(f"{w:g} {name}" for name, w in zip(library, weights, strict=True) if w)
    return Fixed(torch.tensor(weights), named or BASE)
