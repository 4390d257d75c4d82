"""`svf-rl evaluate`: the base, and an expert if one is given, on an environment's held-out questions."""

import json
from pathlib import Path

from svf_rl.base.load import load_base
from svf_rl.config import EvaluateConfig
from svf_rl.evaluate.compare import accuracy, answers, compare, show
from svf_rl.rollout.episodes import make_env
from svf_rl.rollout.sampler import Sampling
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.svf.expert import check_fits, load_expert
from svf_rl.svf.factorize import factorize


def run(configs: list[EvaluateConfig], command: list[str]) -> None:
    for config in configs:
        _evaluate(config)


def _evaluate(config: EvaluateConfig) -> None:
    expert = load_expert(Path(config.expert)) if config.expert else None
    base, env = load_base(config.base), make_env(config.env)
    sampling = Sampling(config.env.max_tokens, config.temperature, config.rows)
    before = answers(base, env, config.split, config.size, sampling, config.seed)
    if expert is None:
        found = [e for e in before if e is not None]
        how = "greedy" if config.temperature == 0 else f"sampled at temperature {config.temperature:g}"
        print(f"{config.env.name}, {config.split}, {how}, n = {len(found)}: {accuracy(found)}")
        return
    factors = factorize(base, str(expert.about["targets"]), expert.about["rank"])
    adapter = SVFAdapter(base.model, factors)
    check_fits(expert, base.fingerprint, {name: f.s for name, f in factors.items()})
    adapter.load_expert(expert)
    adapter.install()
    after = answers(base, env, config.split, config.size, sampling, config.seed)
    show(compare(before, after), f"{config.env.name}, {config.split}: {config.expert}")
    print(json.dumps({"expert": expert.about}, indent=2))
