"""`svf-rl report`: what it finds in folders, and the mistakes it names. The page itself: tests/svf_rl/evaluate/test_report.py."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

FEW = "algo.steps=2 algo.prompts=2 algo.group=2 algo.eval_every=1 valid_size=4 test_size=8".split()


def test_a_page_on_everything_in_a_folder(svf_rl: Callable[..., Any], architecture_folders: dict[str, Path]) -> None:
    env = ["env=math", "env.id=toys:toys/Letter-v0", "env.name=letter", "env.max_tokens=3"]
    assert svf_rl("train", f"base={architecture_folders['llama']}", *env, *FEW, "seed=0,1", "run_dir=runs/letter").code == 0
    cells = [{"row": "probe", "column": c, "value": 0.5, "parts": {"a": 1, "b": 3}} for c in ("math", "code")]
    composed = {"env": "new", "seed": 0, "experts": ["a", "b"], "weights": [0.2, 0.8]}
    forgotten = {"tasks": ["a", "b"], "adapters": {"lora": {"accuracy": [[0.1, 0.2], [0.9, 0.2], [0.4, 0.8]]}}}
    for name, content in {"matrix": {"cells": cells}, "composition": composed, "forgetting": forgotten}.items():
        Path("runs", f"{name}.json").write_text(json.dumps(content))
    Path("pages").mkdir()
    done = svf_rl("report", "out=pages/report.html")
    assert done.code == 0
    assert done.out.startswith("2 runs, 1 matrices, 1 forgotten, 1 composed: pages/report.html")
    text = Path("pages/report.html").read_text()
    for title in ("Reward of sampled answers", "Tokens per answer", "How far z moved", "Matrix 1", "which expert probe chose",
                  "Forgetting 1", "Weights of mixtures", "Answers: letter, svf"):  # fmt: skip
        assert title in text, title
    assert len(list(Path("pages").glob("*.png"))) == text.count("<svg") == 7


def test_mistakes(svf_rl: Callable[..., Any]) -> None:
    assert svf_rl("report").mistake.startswith("found no run, matrix or forgetting in 'runs'")
    Path("runs").mkdir()
    Path("runs/forgetting.json").write_text(json.dumps({"tasks": ["a"], "adapters": {"svf": {"accuracy": [[0.1], [0.9]]}}}))
    assert svf_rl("report", "out=missing/report.html").mistake.startswith("cannot write 'missing/report.html'")
    Path("runs/matrix.json").write_text("{")
    assert svf_rl("report").mistake.startswith("cannot read ")
