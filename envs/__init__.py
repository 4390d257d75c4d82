"""Reward environments: text in, reward out.

Importing this package registers every environment with gymnasium, so `gymnasium.make("envs:svf/Math-v0")` is all a
caller writes. The package knows gymnasium and nothing of models: it never imports torch or `svf_rl`.
"""

import gymnasium

FAMILIES = {
    "svf/Sums-v0": "envs.math:sums",
    "svf/Math-v0": "envs.math:word_problems",
    "svf/HardMath-v0": "envs.math:long_word_problems",
    "svf/Code-v0": "envs.code:chains",
    "svf/ListCode-v0": "envs.code:lists",
    "svf/WordCode-v0": "envs.code:stories",
    "svf/Topic-v0": "envs.classify:topics",
    "svf/NewTopic-v0": "envs.classify:new_topics",
    "svf/WhichTask-v0": "envs.which_task:which_task",
}

# These are given the path of a file or data set, and more settings if wanted: gymnasium.make("envs:svf/GSM8K-v0", path=...).
FILES = {
    "svf/GSM8K-v0": "envs.gsm8k:gsm8k",
    "svf/HumanEval-v0": "envs.humaneval:humaneval",
    "svf/MBPP-v0": "envs.mbpp:mbpp",
    "svf/ARC-v0": "envs.arc:arc",
    "svf/Labels-v0": "envs.labels:labels",
    "svf/Rows-v0": "envs.custom:rows",
}

# Neither drawn for the embedded base's text nor read from files.
OTHERS = {"svf/Hints-v0": "envs.hints:hints"}

gymnasium.register("svf/Mixture-v0", entry_point="envs.mixture:MixtureEnv")
gymnasium.register("svf/ReasoningGym-v0", entry_point="envs.reasoning:make")
for _id, _task in (FAMILIES | FILES | OTHERS).items():
    gymnasium.register(_id, entry_point="envs.text:TextEnv", kwargs={"task": _task})
