"""`svf-rl evaluate`: the base, and an expert if one is given, on an environment's held-out questions."""

import json
from pathlib import Path

from svf_rl.adapters import open_adapter
from svf_rl.base.load import load_base
from svf_rl.config import EvaluateConfig
from svf_rl.evaluate.compare import accuracy, answers, compare, show
from svf_rl.rollout.episodes import graded, make_env
from svf_rl.rollout.sampler import Sampling


def run(configs: list[EvaluateConfig], command: list[str]) -> None:
    for config in configs:
        _evaluate(config)


def _evaluate(config: EvaluateConfig) -> None:
    base, env = load_base(config.base), make_env(config.env)
    opened = open_adapter(Path(config.expert), base) if config.expert else None  # before anything slow
    sampling = Sampling(config.env.max_tokens, config.temperature, config.rows)
    before = answers(base, env, config.split, config.size, sampling, config.seed)
    if opened is None:
        found = graded(before)
        how = "greedy" if config.temperature == 0 else f"sampled at temperature {config.temperature:g}"
        lost = f", {len(before) - len(found)} lost to faults" if len(found) < len(before) else ""
        print(f"{config.env.name}, {config.split}, {how}, n = {len(found)}{lost}: {accuracy(found)}")
        return
    adapter, about = opened
    adapter.install()
    after = answers(base, env, config.split, config.size, sampling, config.seed)
    show(compare(before, after), f"{config.env.name}, {config.split}: {config.expert}", env)
    print(json.dumps({"expert": about}, indent=2))
