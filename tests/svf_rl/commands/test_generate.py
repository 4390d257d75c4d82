"""`svf-rl generate`: mistakes in one line, and every answer against transformers' own generation under the weights it reports."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from svf_rl.adapters import make_adapter, save_adapter
from svf_rl.base.load import Base
from svf_rl.config import read_config

PROMPT = "test 3:"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dispatch=none"], "expected a prompt, found none"),
        (["", "dispatch=none"], "expected a prompt, found none"),
        (["54 + 13 ="], "expected experts=<folder or [files]> to choose from"),
        (["x", "dispatch=prob", "experts=a"], "unknown dispatch 'prob'; did you mean probe"),
        (["x", "dispatch=none", "dispatch.weights=0.5,b"], "dispatch.weights must be numbers"),
        (["x", "dispatch=none", "dispatch.weights=1"], "expected one weight for each of the experts (none)"),
        (["x", "adapter=missing"], "cannot read the expert 'missing': expected an expert or adapter file"),
        (["x", "adapter=a", "experts=b"], "expected experts to choose from or one adapter, found both"),
        (["x", "experts=missing"], "expected a folder of experts or an expert file, found no 'missing'"),
    ],
)
def test_mistakes(svf_rl: Callable[..., Any], words: list[str], message: str) -> None:
    assert svf_rl("generate", *words).mistake.startswith(message)


def test_without_experts_the_base_answers(
    svf_rl: Callable[..., Any], architecture_folders: dict[str, Path], tiny_base: Base
) -> None:
    done = svf_rl("generate", PROMPT, f"base={architecture_folders['llama']}", "dispatch=none", "max_tokens=5", "--explain")
    ids = torch.tensor([tiny_base.codec.prompt(PROMPT)])
    written = tiny_base.model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
    assert done.out.startswith(tiny_base.codec.decode(written.tolist()))
    assert "[the base; first pass 0.00 s, 0 tokens]\nchosen: base" in done.out


@pytest.mark.parametrize("dispatch", ["prompt", "probe", "fewshot"])
def test_the_answer_is_that_of_the_weights_it_reports(
    svf_rl: Callable[..., Any],
    save_expert_of: Callable[..., Path],
    architecture_folders: dict[str, Path],
    tiny_base: Base,
    dispatch: str,
) -> None:
    """Whatever is chosen: transformers' own generation under the mixture that is named says the same."""
    paths = {"one": save_expert_of("one", 0), "two": save_expert_of("two", 1, "toys:toys/Plain-v0")}
    few = "dispatch.shots=3 dispatch.valid_size=6 dispatch.population=6 dispatch.rounds=2".split() if dispatch == "fewshot" else []
    env = ["env=math", "env.id=toys:toys/Letter-v0", "env.name=letter", "env.max_tokens=3"]
    words = [PROMPT, f"base={architecture_folders['llama']}", f"experts={paths['one'].parent.parent}", f"dispatch={dispatch}"]
    done = svf_rl("generate", *words, *few, *env, "max_tokens=5", "--explain")
    assert done.code == 0, done.err
    used = re.search(r"^\[(.*); first pass", done.out, re.MULTILINE)
    assert used is not None
    weights = {} if used[1] == "the base" else {name: float(w) for w, name in (part.split(" ") for part in used[1].split(" + "))}
    assert done.out.startswith(written(tiny_base, paths, weights))
    assert "chosen: " in done.out


def test_an_expert_of_another_base_only_on_request(
    svf_rl: Callable[..., Any], save_expert_of: Callable[..., Path], make_base: Callable[..., Base], tiny_base: Base
) -> None:
    path, other = save_expert_of("one"), make_base(tiny_base.model.config, seed=7)
    words = ["generate", PROMPT, f"base={other.name}", f"experts={path}", "dispatch=none", "max_tokens=5"]
    assert "allow_other_base=true" in svf_rl(*words).mistake
    done = svf_rl(*words, "allow_other_base=true")
    assert done.out.startswith(written(other, {"one": path}, {"one": 1.0}))
    assert "[1.00 one;" in done.out


def written(base: Base, paths: dict[str, Path], weights: dict[str, float]) -> str:
    """Five greedy tokens of the base whose matrices are U diag(s (1 + sum of w (z - 1))) V^T, by torch's own svd."""
    model = copy.deepcopy(base.model)
    experts = {name: load_file(paths[name]) for name in weights}
    for name, z in next(iter(experts.values()), {}).items():
        module = model.get_submodule(name.removeprefix("z."))
        u, s, v = torch.linalg.svd(module.weight.detach(), full_matrices=False)
        scale = 1 + sum(w * (experts[of][name] - 1) for of, w in weights.items())
        assert z.shape == s.shape
        module.weight.data = u @ torch.diag(s * scale) @ v
    return generated(model, base)


def generated(model: Any, base: Base) -> str:
    """Five greedy tokens, by transformers."""
    ids = torch.tensor([base.codec.prompt(PROMPT)])
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0)
    return base.codec.decode(found[0, ids.shape[1] :].tolist())


@pytest.fixture
def run_with(tiny_base: Base, tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """A run folder with an adapter of that kind whose every tensor has moved at random, and the adapter."""

    def make(*words: str) -> tuple[Path, Any]:
        config = read_config("train", words).adapter
        adapter, folder = make_adapter(tiny_base, config), tmp_path / "run"
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in adapter.parameters().values():
                parameter.add_(0.3 * torch.rand_like(parameter))
        folder.mkdir()
        about: dict[str, Any] = {"base": "tiny", "command": "", "revision": "", "metrics": {}, "environment": "lm:notes"}
        save_adapter(folder / "expert.safetensors", adapter, config, {**about, "fingerprint": tiny_base.fingerprint})
        return folder, adapter

    return make


@pytest.mark.parametrize("kind", ["shiftable", "gated", "soft_mask", "selective", "lora", "ia3", "bias", "full", "svf"])
def test_an_adapter_of_any_kind_answers(
    svf_rl: Callable[..., Any], run_with: Callable[..., Any], architecture_folders: dict[str, Path], tiny_base: Base, kind: str
) -> None:
    """As transformers' own generation does with the adapter that was saved."""
    folder, adapter = run_with(f"adapter={kind}")
    words = ["generate", PROMPT, f"base={architecture_folders['llama']}", "max_tokens=5", "explain=true"]
    done = svf_rl(*words, f"adapter={folder}")
    assert done.code == 0, done.err
    adapter.install()
    try:
        found = generated(tiny_base.model, tiny_base)
    finally:
        adapter.uninstall()
    assert done.out.startswith(found + "\n\n")
    assert f"[{kind} of lm:notes; " in done.out
    assert ("gates by layer" in done.out) == (kind in ("shiftable", "gated", "selective"))
    assert ("has no gates" in done.out) == (kind not in ("shiftable", "gated", "selective"))
    assert svf_rl(*words, f"adapter={folder / 'expert.safetensors'}").out == done.out


def test_the_gates_shown_are_those_of_the_formula(
    svf_rl: Callable[..., Any], run_with: Callable[..., Any], architecture_folders: dict[str, Path], tiny_base: Base
) -> None:
    """softmax(W relu(V x) + b) of the first layer's input, by hand."""
    folder, adapter = run_with("adapter=shiftable", "adapter.specialists=2")
    done = svf_rl("generate", PROMPT, f"base={architecture_folders['llama']}", "max_tokens=1", "explain=true", f"adapter={folder}")
    saved = load_file(folder / "expert.safetensors")
    layer = "model.layers.0.self_attn"
    ids = tiny_base.codec.prompt(PROMPT)
    adapter.install()
    ids.append(int(tiny_base.model(torch.tensor([ids])).logits[0, -1].argmax()))
    adapter.uninstall()
    x = tiny_base.model.model.layers[0].input_layernorm(tiny_base.model.model.embed_tokens(torch.tensor(ids)))
    inner = (x @ saved[f"{layer}.gate_in"].T).relu()
    scores = [inner @ saved[f"{layer}.specialists.{k}.gate"] + saved[f"{layer}.specialists.{k}.gate_bias"] for k in range(2)]
    truth = torch.stack([torch.zeros_like(scores[0]), *scores], -1).softmax(-1)
    shown = re.search(r"^  layer 0 +([\d. ]+)$", done.out, re.MULTILINE)
    assert shown is not None
    assert [float(n) for n in shown[1].split()] == pytest.approx(truth.mean(0).tolist(), abs=0.006)
    tokens = done.out.split("gates by token, mean of the layers\n")[1].splitlines()
    assert len(tokens) == len(truth)
    assert all(sum(map(float, line.split()[-3:])) == pytest.approx(1, abs=0.02) for line in tokens)
