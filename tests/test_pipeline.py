"""The whole way, once and for real: a short training of the embedded base makes it better at questions it never saw."""

import json
import signal
from pathlib import Path

from svf_rl.cli import main


def test_a_short_training_helps(tmp_path: Path) -> None:
    """Greedy accuracy on held-out questions rises; the 95 % interval of the paired difference excludes 0; the base is unchanged."""
    handler = signal.getsignal(signal.SIGTERM)
    few = "algo.steps=8 algo.prompts=12 algo.eval_every=4 algo.learning_rate=0.02 algo.warmup=2 valid_size=40 test_size=100".split()
    assert main(["train", "env=math", "seed=0", *few, f"run_dir={tmp_path}/run"]) == 0
    signal.signal(signal.SIGTERM, handler)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["difference_ci95"][0] > 0
    assert summary["expert_accuracy"] > summary["base_accuracy"]
    assert summary["base_unchanged"]
    assert summary["expert_bytes"] < 30_000
