"""`svf-rl pretrain`: make the embedded base again, or a base from your own text, in run_dir."""

from svf_rl.base.pretrain import PretrainConfig, pretrain
from svf_rl.progress import Progress


def run(configs: list[PretrainConfig], command: list[str]) -> None:
    for config in configs:
        print(f"the base is in {pretrain(config, Progress())}")
