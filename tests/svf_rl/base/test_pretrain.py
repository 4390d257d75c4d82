"""A tiny pretraining run: it resumes bit for bit, and what it exports any tool can load."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from svf_rl.base import corpus, pretrain, tokenizer
from svf_rl.base.load import BaseConfig, load_base
from svf_rl.base.pretrain import PretrainConfig, batch_shape, human_loss, learning_rate, new_model, next_token_loss
from svf_rl.base.texts import OwnCorpus, passages_of, read_corpus, windows
from svf_rl.base.tokenizer import embedded_codec
from svf_rl.errors import UserError
from svf_rl.progress import Progress

HELD_OUT = ["def f(x):\n    return x + 1\n", "The answer is 42, they say.", "é"]
SETTINGS = PretrainConfig(
    steps=4,
    rows=4,
    length=12,
    warmup=1,
    vocab_size=300,
    hidden_size=32,
    layers=2,
    heads=2,
    feed_forward=48,
    context=64,
    save_every=2,
    compile=False,
)


@pytest.fixture(scope="module", autouse=True)
def small(texts: corpus.Corpus) -> Iterator[None]:
    """One corpus for all tests, little held-out text, and few documents to learn tokens from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "Corpus", lambda: texts)
        patch.setattr(corpus, "human_text", lambda held_out: HELD_OUT)
        patch.setattr(pretrain, "TOKENIZER_DOCUMENTS", 200)
        yield


def run(folder: Path, **changes: Any) -> Path:
    return pretrain.pretrain(replace(SETTINGS, run_dir=str(folder), **changes), Progress(quiet=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small: None) -> Path:
    """A run of four steps without interruption."""
    return run(tmp_path_factory.mktemp("pretrain") / "run")


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    return [row["loss"] for row in rows]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C after the update of a step, before anything of it is saved."""
    shown = iter(range(1000))

    def show(self: Progress, **figures: object) -> None:
        if next(shown) == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "show", show)


# ---- the run


def test_a_run_leaves_its_files(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert {"loss.jsonl", "loss.png", "pretrain.json", "checkpoint.safetensors"} <= names
    assert not [name for name in names if name.startswith(".")], "no temporary files"
    facts = json.loads((finished / "pretrain.json").read_text())
    assert facts["tokens"] == 4 * 4 * 12
    assert len(losses(finished)) == 4
    assert all(abs(loss - math.log(300)) < 0.5 for loss in losses(finished)), "it starts by knowing nothing"


@pytest.mark.parametrize("step", [2, 3])
def test_a_resumed_run_is_the_uninterrupted_one(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert len(losses(tmp_path)) == 2, "saved after two steps"
    assert not (tmp_path / "model.safetensors").exists()
    run(tmp_path)
    assert losses(tmp_path) == losses(finished)
    for name in ("model.safetensors", "checkpoint.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes(), name


def test_interrupted_before_anything_was_saved(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    run(tmp_path)
    assert losses(tmp_path) == losses(finished)


def test_a_finished_run_is_not_trained_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, steps=2)
    before = (tmp_path / "model.safetensors").read_bytes()
    monkeypatch.setattr(pretrain, "_update", lambda *args: pytest.fail("a step was taken"))
    run(tmp_path, steps=2)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_seeds_differ(finished: Path, tmp_path: Path) -> None:
    run(tmp_path, seed=1, steps=1)
    assert losses(tmp_path)[0] != losses(finished)[0]


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"", lambda content: b"{}" + content])
def test_a_damaged_checkpoint(tmp_path: Path, damage: Any) -> None:
    run(tmp_path, steps=1)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"is damaged .*; delete it to start again") as caught:
        run(tmp_path, steps=2)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_shape(tmp_path: Path) -> None:
    run(tmp_path, steps=1)
    for changes in ({"hidden_size": 16}, {"layers": 1}, {"layers": 3}):
        with pytest.raises(UserError, match="of another shape"):
            run(tmp_path, steps=2, **changes)


def test_your_own_text_makes_a_base_whose_held_out_loss_is_that_of_the_loaded_model(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("".join(f"note {i} is about {i * i % 97} birds\n" for i in range(2000)))
    folder = run(tmp_path / "own", corpus=str(notes), steps=30, learning_rate=0.01)
    base = load_base(BaseConfig(path=str(folder), device="cpu"))
    ids = windows(read_corpus(str(notes)), base.codec, SETTINGS.length + 1, "test")
    logp = base.model(ids[:, :-1]).logits.double().log_softmax(-1)
    nats = -logp.gather(-1, ids[:, 1:, None]).mean().item()
    found = json.loads((folder / "pretrain.json").read_text())["held_out_loss"]
    assert found == pytest.approx({"nats_per_token": nats, "perplexity": math.exp(nats), "tokens": ids[:, 1:].numel()}, rel=1e-5)
    assert nats < 0.8 * math.log(300), "it has learnt something"
    trained = set(passages_of(read_corpus(str(notes)), "train"))
    assert set(OwnCorpus(str(notes)).sample(0, 10_000)) == trained, "tokens are learnt from the training side alone"


def test_your_own_text_resumes_and_no_other_goes_on_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "whole", corpus="special")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", corpus="special")
    for other in (None, "general"):
        with pytest.raises(UserError, match="is of a base on another corpus, special; give another run_dir"):
            run(tmp_path / "parts", corpus=other)
    run(tmp_path / "parts", corpus="special")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    names = ("model.safetensors", "checkpoint.safetensors", "tokenizer.json")
    assert all((tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)


def test_own_text_that_is_too_small_or_rows_that_are_too_long_are_refused_at_once(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("a few words\n" * 3)
    with pytest.raises(UserError, match="expected text of at least 49 tokens on each side"):
        run(tmp_path / "small", corpus=str(notes))
    with pytest.raises(UserError, match="rows of 4 x length = 80, more than context=64"):
        run(tmp_path / "long", corpus="special", length=20)
    with pytest.raises(UserError, match="there is no corpus 'nowhere'"):
        run(tmp_path / "none", corpus="nowhere")


# ---- what is exported


def test_any_tool_loads_the_export(finished: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(finished)
    theirs = transformers.AutoTokenizer.from_pretrained(finished)
    assert type(model) is transformers.LlamaForCausalLM
    assert "auto_map" not in json.loads((finished / "config.json").read_text())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    codec = embedded_codec(finished / "tokenizer.json")
    for text in ("She buys 13 pens.", f"no {tokenizer.END} here", "é  \n", ""):
        assert theirs(text, split_special_tokens=True)["input_ids"] == codec.prompt(text)
        assert theirs.decode(codec.encode(text)) == text
    assert {theirs.eos_token_id, theirs.bos_token_id, model.config.eos_token_id, model.config.bos_token_id} == codec.stop_ids
    assert {theirs.pad_token_id, model.config.pad_token_id} == {codec.pad_id}
    assert theirs.model_max_length == model.config.max_position_embeddings == 64


def test_the_export_is_the_trained_model_rounded(finished: Path) -> None:
    exported, checkpoint = load_file(finished / "model.safetensors"), load_file(finished / "checkpoint.safetensors")
    trained = {name.removeprefix("p."): t for name, t in checkpoint.items() if name.startswith("p.")}
    assert exported.keys() == trained.keys()
    assert all(t.dtype == torch.bfloat16 and torch.equal(t, trained[name].bfloat16()) for name, t in exported.items())
    base = load_base(BaseConfig(path=str(finished), device="cpu"))
    weights = base.model.state_dict()
    assert all(torch.equal(weights[name], t.float()) for name, t in exported.items())
    assert json.loads((finished / "pretrain.json").read_text())["human_loss"] == human_loss(base.model, base.codec)


# ---- the parts


def test_learning_rate() -> None:
    config = PretrainConfig(steps=110, warmup=10, learning_rate=2.0)
    assert [learning_rate(config, step) for step in (0, 4, 9, 10)] == pytest.approx([0.2, 1.0, 2.0, 2.0])
    assert learning_rate(config, 60) == pytest.approx(2.0 * (0.01 + 0.99 / 2))
    assert learning_rate(config, 110) == pytest.approx(0.02)
    rates = [learning_rate(config, step) for step in range(10, 111)]
    assert rates == sorted(rates, reverse=True)


def test_late_batches_are_longer_and_as_large() -> None:
    config = PretrainConfig(steps=100, rows=64, length=128)
    assert [batch_shape(config, step) for step in (0, 89, 90, 99)] == [(64, 128), (64, 128), (16, 512), (16, 512)]
    assert batch_shape(replace(config, rows=2), 99) == (1, 512)


def test_loss_is_the_mean_cross_entropy(tiny_base: Any) -> None:
    ids = torch.randint(0, 300, (2, 7), generator=torch.Generator().manual_seed(0))
    logp = tiny_base.model(input_ids=ids).logits.double().log_softmax(-1)
    by_hand = -sum(float(logp[row, t, ids[row, t + 1]]) for row in range(2) for t in range(6)) / 12
    assert float(next_token_loss(tiny_base.model, ids)) == pytest.approx(by_hand, rel=1e-5)


def test_human_loss_of_a_model_that_knows_nothing(tokenizer_json: Path) -> None:
    codec = embedded_codec(tokenizer_json)
    model = new_model(SETTINGS, codec)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    tokens = sum(len(codec.encode(text)) for text in HELD_OUT)
    size = sum(len(text.encode()) for text in HELD_OUT)
    loss = human_loss(model, codec)
    assert loss["tokens"] == tokens
    assert loss["nats_per_token"] == pytest.approx(math.log(300), rel=1e-5)
    assert loss["bits_per_byte"] == pytest.approx(tokens * math.log2(300) / size, rel=1e-5)


def test_only_matrices_decay(tokenizer_json: Path) -> None:
    model = new_model(SETTINGS, embedded_codec(tokenizer_json))
    groups = pretrain._optimizer(model, SETTINGS).param_groups
    assert {p.ndim: g["weight_decay"] for g in groups for p in g["params"]} == {2: 0.1, 1: 0.0}
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in model.parameters())
