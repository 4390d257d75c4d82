"""An expert trained by the same reinforcement learning on "which task is this?" reads the prompt: `svf-rl train env=which_task`.

It is asked as the base is in prompt.py, in the words that it was trained on, under its own z.

Source: Transformer-Squared, section 3.2 (classification expert).
Differs from the source: see prompt.py.
"""

from dataclasses import dataclass
from pathlib import Path

from svf_rl.base.load import Base
from svf_rl.dispatch.library import ROUTER, Library, label
from svf_rl.dispatch.prompt import QUESTION, PromptConfig, PromptDispatcher
from svf_rl.errors import ExpertError
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.svf.expert import check_fits, load_expert
from svf_rl.types import Expert


@dataclass(frozen=True)
class ClassifierConfig:
    """Which expert reads the prompts, and how it is asked; configs/dispatch/classifier.yaml."""

    name: str = "classifier"
    router: str | None = None
    question: str = QUESTION
    labels: str | None = "math, code, topic"
    other: str = "other"
    decode: bool = False
    margin: float = 2.0
    soft: bool = False


def make_classifier(
    base: Base, adapter: SVFAdapter, library: Library, config: ClassifierConfig, everyone: Library
) -> PromptDispatcher:
    """library: the experts that answer; everyone: also the one that reads. ExpertError if there is none that does."""
    asked = PromptConfig(calibrate=False, **{key: value for key, value in vars(config).items() if key != "router"})
    names, own = tuple(library), tuple(label(e) for e in library.values())
    return PromptDispatcher(base, adapter, names, own, asked, _router(base, adapter, config, everyone))


def _router(base: Base, adapter: SVFAdapter, config: ClassifierConfig, everyone: Library) -> Expert:
    if config.router is not None:
        expert = load_expert(Path(config.router))
        check_fits(expert, base.fingerprint, adapter.spectra)
        return expert
    found = [e for e in everyone.values() if label(e) == ROUTER]
    if not found:
        raise ExpertError(
            "expected an expert trained on which_task among the experts, found none; "
            "give dispatch.router=<file>, or train one: svf-rl train env=which_task"
        )
    return found[0]
