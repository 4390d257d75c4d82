"""`svf-rl evaluate`: the base, and an expert if one is given, on an environment's held-out questions."""

import json
from pathlib import Path

from svf_rl.base.load import Base, load_base
from svf_rl.config import EvaluateConfig
from svf_rl.evaluate.compare import accuracy, answers, compare, show
from svf_rl.rollout.episodes import graded, make_env
from svf_rl.rollout.sampler import Sampling
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.svf.expert import check_fits, load_expert
from svf_rl.svf.factorize import factorize
from svf_rl.types import Expert


def run(configs: list[EvaluateConfig], command: list[str]) -> None:
    for config in configs:
        _evaluate(config)


def _evaluate(config: EvaluateConfig) -> None:
    expert = load_expert(Path(config.expert)) if config.expert else None
    base, env = load_base(config.base), make_env(config.env)
    adapter = _adapter(base, expert) if expert else None  # before anything slow: an expert of another base is refused at once
    sampling = Sampling(config.env.max_tokens, config.temperature, config.rows)
    before = answers(base, env, config.split, config.size, sampling, config.seed)
    if expert is None or adapter is None:
        found = graded(before)
        how = "greedy" if config.temperature == 0 else f"sampled at temperature {config.temperature:g}"
        lost = f", {len(before) - len(found)} lost to faults" if len(found) < len(before) else ""
        print(f"{config.env.name}, {config.split}, {how}, n = {len(found)}{lost}: {accuracy(found)}")
        return
    adapter.install()
    after = answers(base, env, config.split, config.size, sampling, config.seed)
    show(compare(before, after), f"{config.env.name}, {config.split}: {config.expert}")
    print(json.dumps({"expert": expert.about}, indent=2))


def _adapter(base: Base, expert: Expert) -> SVFAdapter:
    check_fits(expert, base.fingerprint, expert.z)  # the fingerprint alone: factorising the wrong base may take long
    factors = factorize(base, str(expert.about["targets"]), expert.about["rank"])
    check_fits(expert, base.fingerprint, {name: f.s for name, f in factors.items()})
    adapter = SVFAdapter(base.model, factors)
    adapter.load_expert(expert)
    return adapter
