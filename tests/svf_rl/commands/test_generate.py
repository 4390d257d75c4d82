"""`svf-rl generate`: mistakes in one line, and the base's own answer without experts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from svf_rl.base.load import Base


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dispatch=none"], "expected a prompt, found none"),
        (["", "dispatch=none"], "expected a prompt, found none"),
        (["54 + 13 ="], "expected experts=<folder or [files]> to choose from"),
        (["x", "dispatch=prob", "experts=a"], "unknown dispatch 'prob'; did you mean probe"),
        (["x", "dispatch=none", "dispatch.weights=0.5,b"], "dispatch.weights must be numbers"),
        (["x", "dispatch=none", "dispatch.weights=1"], "expected one weight for each of the experts (none)"),
        (["x", "experts=missing"], "expected a folder of experts or an expert file, found no 'missing'"),
    ],
)
def test_mistakes(svf_rl: Callable[..., Any], words: list[str], message: str) -> None:
    assert svf_rl("generate", *words).mistake.startswith(message)


def test_without_experts_the_base_answers(
    svf_rl: Callable[..., Any], architecture_folders: dict[str, Path], tiny_base: Base
) -> None:
    done = svf_rl("generate", "a = b", f"base={architecture_folders['llama']}", "dispatch=none", "max_tokens=5", "--explain")
    ids = torch.tensor([tiny_base.codec.prompt("a = b")])
    written = tiny_base.model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
    assert done.out.startswith(tiny_base.codec.decode(written.tolist()))
    assert "[the base; first pass 0.00 s, 0 tokens]\nchosen: base" in done.out
