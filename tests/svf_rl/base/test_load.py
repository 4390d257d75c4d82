"""A base loads from a folder as a user's does; whatever else is asked for is refused in one line and never looked up on the hub."""

import copy
import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from svf_rl.base import load, tokenizer
from svf_rl.base.load import Base, BaseConfig, fingerprint, frozen_check, load_base, resolve
from svf_rl.errors import BaseError

CHAT = (
    "{% for m in messages %}<|endoftext|>{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}bot:{% endif %}"
)


def on_cpu(path: Path | str, **options: Any) -> BaseConfig:
    return BaseConfig(path=str(path), device="cpu", **options)


@pytest.fixture
def folder(architecture_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the Llama's folder, to be changed."""
    return Path(shutil.copytree(architecture_folders["llama"], tmp_path / "model"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """No connection, and no load by transformers or the hub's client; the list holds what was tried."""
    tried: list[object] = []

    def refuse(*args: Any, **kwargs: Any) -> None:
        tried.append(args)
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    return tried


def refused(config: BaseConfig, reason: str) -> None:
    with pytest.raises(BaseError, match=reason) as caught:
        load_base(config)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


# ---- what a base is


def test_loads_as_transformers_does(base: Base, architecture_folders: dict[str, Path]) -> None:
    path = architecture_folders[Path(base.name).name]
    reference = transformers.AutoModelForCausalLM.from_pretrained(path)
    assert type(base.model) is type(reference)
    ids = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference.eval()(input_ids=ids).logits
        assert torch.equal(base.logits(base.hidden(ids)), expected)
        torch.testing.assert_close(base.logits(base.hidden(ids)[:, [2, 7]]), expected[:, [2, 7]])
    assert base.split_head, "the head of each of these is known"
    assert base.context == 128
    assert not base.model.training
    assert not any(p.requires_grad for p in base.model.parameters())
    assert base.device == torch.device("cpu")
    assert base.codec.stop_ids == {reference.config.eos_token_id}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(architecture_folders: dict[str, Path], dtype: str) -> None:
    base = load_base(on_cpu(architecture_folders["qwen3"], dtype=dtype))
    assert {p.dtype for p in base.model.parameters()} == {getattr(torch, dtype)}
    assert base.logits(base.hidden(torch.tensor([[1, 2]]))).dtype == torch.float32


def test_dtype_auto_is_the_files_own(folder: Path) -> None:
    load_base(on_cpu(folder, dtype="bfloat16")).model.save_pretrained(folder)
    assert load_base(on_cpu(folder)).model.dtype == torch.bfloat16


def test_stop_tokens_come_from_the_generation_settings(folder: Path) -> None:
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [5, 7]}))
    assert load_base(on_cpu(folder)).codec.stop_ids == {5, 7}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_is_used_when_there_is_one(architecture_folders: dict[str, Path]) -> None:
    assert load_base(BaseConfig(path=str(architecture_folders["llama"]))).device.type == "cuda"


# ---- heads


class ScaledHead(transformers.LlamaForCausalLM):
    """Does something to its logits that nobody told us."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 0.5 + 1
        return out


def test_an_unknown_head_still_gives_the_models_logits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", lambda path, **options: ScaledHead.from_pretrained(path, **options)
    )
    base = load_base(on_cpu(folder))
    assert not base.split_head
    ids = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = base.model(input_ids=ids).logits
        assert torch.equal(base.logits(base.hidden(ids)), expected)
        assert torch.equal(base.logits(base.hidden(ids)[:, [3, 5]]), expected[:, [3, 5]])


def test_soft_capping(fast_tokenizer: Any, tmp_path: Path) -> None:
    shape = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    ids = {"eos_token_id": fast_tokenizer.eos_token_id, "pad_token_id": fast_tokenizer.pad_token_id}
    torch.manual_seed(0)
    model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**shape, **heads, **ids, final_logit_softcapping=2.0))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    fast_tokenizer.save_pretrained(tmp_path)
    base = load_base(on_cpu(tmp_path))
    assert base.split_head
    with torch.no_grad():
        scores = base.logits(base.hidden(torch.tensor([[1, 2, 3]])))
        assert torch.equal(scores, base.model(input_ids=torch.tensor([[1, 2, 3]])).logits)
    assert 1.5 < float(scores.abs().max()) <= 2.0, "the cap is felt"


# ---- what is refused


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "path",
    [
        "/no/such/folder",
        "./missing",
        "../missing/base",
        "missing/folder/deep",
        "~/no such base",
        "~nobody/base",
        "runs/foo",
        "runs/",
        "a b",
    ],
)
def test_a_missing_folder_is_never_looked_up(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[object]
) -> None:
    monkeypatch.chdir(tmp_path)
    if path == "runs/foo":
        (tmp_path / "runs").mkdir()
    refused(on_cpu(path), "does not exist; give an existing folder, a hub id")
    assert no_network == []


def test_a_folder_without_a_model(tmp_path: Path, no_network: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"")
    for path in (tmp_path, "", ".", "weights.safetensors"):
        refused(on_cpu(path), "expected a model folder with config.json, found none")
    assert no_network == []


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen2.5-0.5B", "mistralai/Mistral-7B-v0.3"])
def test_hub_ids_are_hub_ids(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[tuple[str, Any]] = []

    def remember(source: str, **options: Any) -> None:
        asked.append((source, options["revision"]))
        raise OSError("offline")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", remember)
    refused(on_cpu(name, revision="abc"), f"cannot load the base '{name}'.*offline")
    assert asked == [(name, "abc")]


def test_a_hub_id_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The client is offline in these tests, so this is what a user without network sees."""
    monkeypatch.chdir(tmp_path)
    refused(on_cpu("nobody/no-such-base"), "cannot load the base 'nobody/no-such-base' as a causal language model")


def test_a_local_folder_goes_before_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert resolve("model") == "model"
    assert load_base(on_cpu("model")).name == "model"


def test_unknown_dtype_and_device(folder: Path) -> None:
    refused(
        BaseConfig(path=str(folder), dtype="float8"), "base.dtype must be one of auto, float32, bfloat16, float16, not 'float8'"
    )
    for device in ("gpu", "cuda:99", ""):
        refused(BaseConfig(path=str(folder), device=device), f"base.device='{device}' cannot be used here; give auto, cpu")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", cut),
        ("model.safetensors", Path.unlink),
        ("config.json", lambda path: path.write_text("{")),
        ("config.json", lambda path: path.write_text('{"model_type": "no_such_architecture"}')),
        ("config.json", lambda path: path.write_text("{}")),
        ("tokenizer.json", lambda path: path.write_text("{")),
    ],
)
def test_a_damaged_folder(folder: Path, name: str, damage: Any) -> None:
    damage(folder / name)
    refused(on_cpu(folder), f"cannot load the base '{folder}' as a causal language model: ")


def test_missing_weights_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refused(on_cpu(folder), "lack the weights model.layers.1.mlp.up_proj.weight")


def test_weights_of_another_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    refused(on_cpu(folder), "cannot load the base")


def test_code_from_the_folder_is_not_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("import pathlib; pathlib.Path(__file__).with_name('executed').touch()")
    refused(on_cpu(folder), "trust_remote_code")
    assert "own" not in sys.modules
    assert not (folder / "executed").exists()


# ---- prompts


def test_without_a_chat_template_the_prompt_is_the_text(base: Base, fast_tokenizer: Any) -> None:
    text = "She buys 13 pens.\nAnswer:"
    assert base.codec.prompt(text) == [fast_tokenizer.eos_token_id, *base.codec.encode(text)]
    assert base.codec.decode(base.codec.prompt(text)) == text


def test_with_a_chat_template_it_is_a_message(folder: Path, fast_tokenizer: Any) -> None:
    (folder / "chat_template.jinja").write_text(CHAT)
    codec = load_base(on_cpu(folder)).codec
    expected = fast_tokenizer("user: hello\nbot:", add_special_tokens=False)["input_ids"]
    assert codec.prompt("hello") == [fast_tokenizer.eos_token_id, *expected], "one start, the template's"
    assert codec.encode("hello") == fast_tokenizer("hello", add_special_tokens=False)["input_ids"]


# ---- the embedded base


EMBEDDED = Path(load.__file__).parent / "embedded"


@pytest.mark.skipif(not (EMBEDDED / "model.safetensors").exists(), reason="the embedded base is not there yet")
def test_the_embedded_base() -> None:
    base = load_base(on_cpu("embedded"))
    assert base.name == "embedded"
    assert base.split_head
    assert base.model.dtype == torch.float32
    assert sum(p.numel() for p in base.model.parameters()) <= 6_000_000
    assert sum(f.stat().st_size for f in EMBEDDED.iterdir()) <= 14_000_000
    assert base.codec.stop_ids == {base.model.config.eos_token_id}
    assert base.codec.pad_id == base.model.config.pad_token_id
    assert base.codec.prompt("a")[0] == base.model.config.bos_token_id
    assert tokenizer.tiktoken_encoding(EMBEDDED / "tokenizer.json").n_vocab == base.model.config.vocab_size


# ---- the fingerprint


def test_fingerprint_changes_with_any_value(base: Base) -> None:
    """One bit of any tensor, and nothing but the tensors."""
    model = copy.deepcopy(base.model)
    model.config.use_cache = False
    model.train()
    assert fingerprint(model) == base.fingerprint
    seen = {base.fingerprint}
    for tensor in dict(model.state_dict()).values():
        flat = tensor.view(-1).view(torch.int32)
        flat[-1] ^= 1
        seen.add(fingerprint(model))
        flat[-1] ^= 1
    assert fingerprint(model) == base.fingerprint
    distinct = {t.data_ptr() for t in model.state_dict().values()}
    assert len(seen) == len(distinct) + 1


def test_fingerprint_is_the_same_in_every_process(architecture_folders: dict[str, Path], base: Base) -> None:
    assert load_base(on_cpu(architecture_folders[Path(base.name).name])).fingerprint == base.fingerprint


def test_fingerprint_tells_type_and_name() -> None:
    layers = [nn.Linear(2, 2), nn.Linear(2, 2).bfloat16(), nn.Linear(4, 1)]
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    models = [*layers, nn.Sequential(layers[0]), nn.ModuleDict({"a": layers[0]})]
    assert len({fingerprint(model) for model in models}) == len(models)


def test_frozen_check(tiny_base: Base) -> None:
    model = copy.deepcopy(tiny_base.model)
    with frozen_check(model) as unchanged:
        assert unchanged()
        model.lm_head.weight[0, 0] += 1
        assert not unchanged()
