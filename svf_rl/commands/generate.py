"""`svf-rl generate "..."`: one prompt, read by a dispatcher and answered by the experts that it chose."""

from svf_rl.base.load import load_base
from svf_rl.dispatch.choices import GenerateConfig, make_dispatcher
from svf_rl.dispatch.dispatcher import Decision
from svf_rl.dispatch.library import open_library
from svf_rl.dispatch.system import Answer, answer
from svf_rl.progress import Progress
from svf_rl.rollout.sampler import Sampling
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.types import Expert


def run(configs: list[GenerateConfig], command: list[str]) -> None:
    for config in configs:
        _generate(config)


def _generate(config: GenerateConfig) -> None:
    base = load_base(config.base)
    everyone: dict[str, Expert] = {}
    adapter = SVFAdapter(base.model, {})
    if config.experts is not None:
        everyone, adapter = open_library(config.experts, base, config.allow_other_base)
    adapter.install()
    library, dispatcher = make_dispatcher(base, adapter, everyone, config.dispatch, config.env, config.seed, Progress())
    sampling = Sampling(config.max_tokens, config.temperature)
    (given,), decision = answer(base, adapter, library, dispatcher, [config.prompt], sampling, [config.seed])
    print(given.text)
    print(f"\n[{used(given)}; first pass {decision.seconds:.2f} s, {decision.tokens} tokens]")
    if config.explain:
        print(explain(given, decision))


def used(given: Answer) -> str:
    """Which experts answered, with what weights."""
    return " + ".join(f"{weight:.2f} {name}" for name, weight in given.weights.items()) or "the base"


def explain(given: Answer, decision: Decision) -> str:
    """What the first pass said: the choice, and the score of everything it chose among."""
    scores = sorted(given.scores.items(), key=lambda entry: entry[1])
    return "\n".join([f"chosen: {given.label}", *(f"  {name:16} {score:8.3f}" for name, score in scores)])
