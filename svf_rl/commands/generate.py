"""`svf-rl generate "..."`: one prompt, read by a dispatcher and answered by the experts it chose, or by one adapter of any kind.

explain says what the choice was among; of an adapter, its gates by layer and by token, where it has gates. A
geometric prior that is kept beside the file of shiftable attention (lm.prior) is a term of its gates.
"""

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from svf_rl.adapter import Adapter
from svf_rl.adapters import adapter_file, open_adapter
from svf_rl.attention.adapter import AttentionAdapter
from svf_rl.attention.shiftable import prior
from svf_rl.base.load import Base, load_base
from svf_rl.dispatch.choices import GenerateConfig, make_dispatcher
from svf_rl.dispatch.dispatcher import Decision
from svf_rl.dispatch.library import open_library
from svf_rl.dispatch.system import Answer, answer
from svf_rl.learn.prior import open_prior, prior_file, prompt_prior
from svf_rl.progress import Progress
from svf_rl.rollout.sampler import Sampling, check_prompts, sample
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.types import Expert

MANY = 32  # gates of one token that are still shown one by one


def run(configs: list[GenerateConfig], command: list[str]) -> None:
    for config in configs:
        if config.adapter is None:
            _generate(config)
        else:
            _adapted(config, config.adapter)


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


def _adapted(config: GenerateConfig, where: str) -> None:
    """The prompt, answered by the base with one adapter."""
    base = load_base(config.base)
    path = adapter_file(where)
    adapter, about = open_adapter(path, base, Progress())
    ids = base.codec.prompt(config.prompt)
    check_prompts(base, [ids])
    known = geometric_prior(base, adapter, path, ids)
    adapter.install()
    with nullcontext() if known is None else prior(adapter, known):  # type: ignore[arg-type]
        (given,) = sample(base, [ids], Sampling(config.max_tokens, config.temperature), [config.seed])
        print(base.codec.decode(given.ids))
        print(f"\n[{adapter.name} of {about['environment']}; {len(ids)} tokens read, {len(given.ids)} written]")
        if config.explain:
            print(show_gates(base, adapter, [*ids, *given.ids]))
    if config.explain and known is not None:
        print(f"prior of the prompt: base, then specialists {_numbers(known[0].exp())}")


def geometric_prior(base: Base, adapter: Adapter, path: Path, ids: list[int]) -> Tensor | None:
    """The log prior [1, n] of the prompt's branches, where one is kept beside a file of shiftable attention."""
    if not (isinstance(adapter, AttentionAdapter) and adapter.name == "shiftable"):
        return None
    found = open_prior(prior_file(path), base, 1 + adapter.config.specialists)
    return None if found is None else prompt_prior(base, found, ids)


def show_gates(base: Base, adapter: Adapter, ids: list[int]) -> str:
    """The mean gates by layer, and those of each token over the layers; or why there are none."""
    if not isinstance(adapter, AttentionAdapter):
        return f"{adapter.name} has no gates"
    try:
        gates = look(adapter, torch.tensor([ids], device=base.device))
    except ValueError as error:
        return str(error)
    of = "base, then specialists" if adapter.name == "shiftable" else "each head" if gates.shape[-1] > 1 else "mean"
    layers = [f"  layer {i:<11} {_numbers(row)}" for i, row in enumerate(gates.mean(1))]
    tokens = [f"  {base.codec.decode([i])!r:17} {_numbers(row)}" for i, row in zip(ids, gates.mean(0), strict=True)]
    return "\n".join([f"gates by layer: {of}", *layers, "gates by token, mean of the layers", *tokens])


@torch.no_grad()
def look(adapter: AttentionAdapter, ids: Tensor) -> Tensor:
    """The gates of one row [layers, time, n]; too many to be told apart are one mean, unless they are branches."""
    gates = torch.stack([layer[0].float() for layer in adapter.look(ids, return_gates=True)[1]])
    return gates if adapter.name == "shiftable" or gates.shape[-1] <= MANY else gates.mean(-1, keepdim=True)


def _numbers(row: Tensor) -> str:
    return " ".join(f"{gate:.2f}" for gate in row.tolist())
