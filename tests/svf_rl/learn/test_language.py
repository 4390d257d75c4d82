"""Next-token training: what it computes, what it leaves, how it resumes."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from svf_rl.adapters import open_adapter
from svf_rl.attention.shiftable import ShiftableConfig, make_shiftable
from svf_rl.base.load import Base, BaseConfig, load_base
from svf_rl.errors import UserError
from svf_rl.files import read_tensors
from svf_rl.learn import language
from svf_rl.learn.tracking import METRICS, read_rows
from svf_rl.progress import Progress

FEW = "lm.steps=4 lm.rows=4 lm.length=16 lm.eval_every=2 lm.labelled_steps=2 lm.warmup=1".split()


@pytest.fixture
def words(tmp_path: Path, architecture_folders: dict[str, Path]) -> list[str]:
    """A run that takes a moment: two small corpora, a random base of two layers."""
    (tmp_path / "ships.txt").write_text("".join(f"ship {i} sails to port {i * i % 97}\n" for i in range(2500)))
    (tmp_path / "birds.txt").write_text("".join(f"bird {i} sings song {i * 7 % 31} at dawn\n" for i in range(2500)))
    base = f"base={architecture_folders['llama']}"
    return ["train", "objective=lm", base, "base.device=cpu", "corpus=ships.txt", "lm.general=birds.txt", *FEW]


def test_nats_are_the_cross_entropy(tiny_base: Base) -> None:
    ids = torch.randint(300, (3, 9), generator=torch.Generator().manual_seed(0))
    logits = tiny_base.model(ids[:, :-1]).logits
    naive = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    torch.testing.assert_close(language.held_out_nats(tiny_base, ids, rows=2), naive, rtol=1e-5, atol=1e-5)


def test_rows_of_a_step_go_round_the_corpus() -> None:
    corpus = torch.arange(7)[:, None].expand(7, 3)
    seen = torch.cat([language.draw(corpus, 2, 5, step)[:, 0] for step in range(7)])
    assert seen.view(2, 7).sort().values.tolist() == [list(range(7))] * 2
    assert torch.equal(language.draw(corpus, 2, 5, 3), language.draw(corpus, 2, 5, 3))


@pytest.mark.parametrize("bad", [{"share": 1.0}, {"rows": 0}, {"length": 1}, {"clip": 0.0}, {"patience": -1}])
def test_impossible_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        language.LanguageConfig(**bad)


def test_closed_gates_are_the_base_bit_for_bit(tiny_base: Base) -> None:
    adapter = make_shiftable(tiny_base, ShiftableConfig(specialists=2), Progress(quiet=True))
    ids = torch.randint(300, (2, 12), generator=torch.Generator().manual_seed(1))
    before = language.held_out_nats(tiny_base, ids)
    adapter.install()
    try:
        with torch.no_grad():
            for parameter in adapter.parameters().values():
                parameter.normal_(0, 0.5)
        open_nats = language.held_out_nats(tiny_base, ids)
        with language.closed(adapter):
            closed = language.held_out_nats(tiny_base, ids)
        gates = language.mean_gates(tiny_base, adapter, ids)
    finally:
        adapter.uninstall()
    assert torch.equal(closed, before)
    assert not torch.equal(open_nats, before)
    assert [len(layer) for layer in gates] == [3, 3]
    assert [sum(layer) for layer in gates] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("adapter", ["shiftable", "svf", "lora"])
def test_a_run_leaves_its_folder(svf_rl: Callable[..., Any], words: list[str], tmp_path: Path, adapter: str) -> None:
    done = svf_rl(*words, f"adapter={adapter}", "run_dir=run")
    assert done.code == 0, done.err
    folder = tmp_path / "run"
    names = {path.name for path in folder.iterdir() if not path.name.startswith("events")}
    assert names >= {"config.yaml", "metrics.jsonl", "checkpoint.safetensors", "expert.safetensors", "curve.png", "summary.json"}
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row["step"] for row in rows if "valid_perplexity" in row] == [1, 3]
    assert all(math.isfinite(value) and key in {*METRICS, "step"} for row in rows for key, value in row.items())
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["base_unchanged"]
    assert all(summary[name]["closed_is_base"] for name in ("special", "general"))
    assert ("gates" in summary["special"]) == (adapter == "shiftable") == ("gates by layer" in done.out)


def test_the_file_gives_back_what_was_tested(svf_rl: Callable[..., Any], words: list[str], tmp_path: Path) -> None:
    """The perplexity in the summary is that of the adapter file on the same rows."""
    assert svf_rl(*words, "adapter=shiftable", "run_dir=run", "lm.learning_rate=0.05").code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    base = load_base(BaseConfig(path=words[2].removeprefix("base="), device="cpu"))
    adapter, about = open_adapter(tmp_path / "run" / "expert.safetensors", base)
    from svf_rl.base.texts import read_corpus, windows

    adapter.install()
    nats = language.held_out_nats(base, windows(read_corpus(str(tmp_path / "ships.txt")), base.codec, 17, "test"))
    assert summary["best_step"] > 0
    assert math.exp(nats.mean().item()) == pytest.approx(summary["special"]["perplexity"]["adapted"], rel=1e-6)
    assert about["metrics"]["special"] == summary["special"]["perplexity"]


def test_a_resumed_run_is_the_uninterrupted_one(
    svf_rl: Callable[..., Any], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert svf_rl(*words, "adapter=shiftable", "run_dir=whole").code == 0
    save, calls = language.save_checkpoint, []

    def saving(*args: Any) -> None:
        save(*args)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(language, "save_checkpoint", saving)
    assert svf_rl(*words, "adapter=shiftable", "run_dir=parts").code == 130
    assert svf_rl(*words, "adapter=shiftable", "run_dir=parts", "resume=true").code == 0
    states = [read_tensors(tmp_path / name / "checkpoint.safetensors")[0] for name in ("whole", "parts")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_rows_longer_than_the_context_are_refused(svf_rl: Callable[..., Any], words: list[str]) -> None:
    assert "the context of the base, 128" in svf_rl(*words, "lm.length=500").mistake
