"""Next-token training: what it computes, what it leaves, how it resumes."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import scipy.stats
import torch
from torch.nn import functional as F

from svf_rl.adapters import open_adapter
from svf_rl.attention.shiftable import ShiftableConfig, make_shiftable
from svf_rl.base.load import Base, BaseConfig, load_base
from svf_rl.base.texts import read_corpus, windows
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


def test_every_corpus_is_the_text_of_its_own_specialist() -> None:
    """Corpus k is all k, general text all 0: what comes is labelled with what it is, and its rows are shared out evenly."""
    sides = [{"train": torch.full((9, 3), k)} for k in range(4)]
    texts = language.Texts({f"special{k}": sides[k] for k in (1, 2, 3)}, sides[0])
    run = Mock(spec=language.LanguageRun, texts=texts, config=language.LanguageConfig(rows=14, share=0.25), seed=0)
    run.progress = Mock(older=0)
    run.base = Mock(device=torch.device("cpu"))
    assert [(branch, ids.unique().tolist(), len(ids)) for branch, ids in language.batches(run, 5)] == [
        (1, [1], 4),
        (2, [2], 3),
        (3, [3], 3),
        (0, [0], 4),
    ]


@pytest.mark.parametrize(("step", "forced"), [(0, True), (75, False)])
def test_the_gate_is_taught_every_branch_alike(tiny_base: Base, step: int, forced: bool) -> None:
    """While all three are as likely to it, branches of 5, 4 and 3 rows pull its biases nowhere; from tokens it does learn."""
    adapter = make_shiftable(tiny_base, ShiftableConfig(specialists=2), Progress(quiet=True))
    config = language.LanguageConfig(rows=12, labelled_steps=75)
    run = Mock(spec=language.LanguageRun, base=tiny_base, adapter=adapter, config=config)
    run.texts = language.Texts({"special1": {}, "special2": {}}, {})
    rows = torch.randint(0, 290, (12, 9), generator=torch.Generator().manual_seed(0)).split([5, 4, 3])
    adapter.install()
    try:
        for branch, ids in zip((1, 2, 0), rows, strict=True):
            language.backward(run, ids, branch, step)
            with language.told(run, branch, step, 0.25):
                assert {(patch.label, patch.forced) for patch in adapter.patches.values()} == {(branch, forced)}
    finally:
        adapter.uninstall()
    for name, parameter in adapter.parameters().items():
        if name.endswith(".gate_bias"):
            assert parameter.grad is not None
            assert float(parameter.grad.abs()) < 1e-6
        elif name.endswith(".gate"):
            assert parameter.grad is not None
            assert float(parameter.grad.abs().max()) > 1e-4


@pytest.mark.parametrize(
    "bad", [{"share": 1.0}, {"rows": 0}, {"length": 1}, {"clip": 0.0}, {"patience": -1}, {"label_weight": -1.0}]
)
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


@pytest.mark.parametrize("adapter", ["shiftable", "gated", "soft_mask", "selective", "svf", "lora"])
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
    assert ("gates" in summary["special"]) == (adapter == "shiftable") == ("gates by layer" in done.out) == ("gates.png" in names)


def test_the_file_gives_back_what_was_tested(svf_rl: Callable[..., Any], words: list[str], tmp_path: Path) -> None:
    """The perplexity in the summary is that of the adapter file on the same rows."""
    assert svf_rl(*words, "adapter=shiftable", "run_dir=run", "lm.learning_rate=0.05").code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    base = load_base(BaseConfig(path=words[2].removeprefix("base="), device="cpu"))
    adapter, about = open_adapter(tmp_path / "run" / "expert.safetensors", base)
    adapter.install()
    nats = language.held_out_nats(base, windows(read_corpus(str(tmp_path / "ships.txt")), base.codec, 17, "test"))
    assert summary["best_step"] > 0
    assert math.exp(nats.mean().item()) == pytest.approx(summary["special"]["perplexity"]["adapted"], rel=1e-6)
    assert about["metrics"]["special"] == summary["special"]["perplexity"]


THREE = ["corpus=[ships.txt,trees.txt,sums.txt]", "adapter=shiftable", "adapter.specialists=3"]


@pytest.fixture
def three(words: list[str], tmp_path: Path) -> list[str]:
    """The same with a corpus for each of three specialists."""
    (tmp_path / "trees.txt").write_text("".join(f"a tree of {i} years has {i * 3 % 89} leaves, green\n" for i in range(1200)))
    (tmp_path / "sums.txt").write_text("".join(f"{i} + {i * i % 71} = {i + i * i % 71};\n" for i in range(2000)))
    return [*(word for word in words if not word.startswith("corpus=")), *THREE]


def test_every_specialist_learns_to_open_on_its_own_corpus(svf_rl: Callable[..., Any], three: list[str], tmp_path: Path) -> None:
    """Long after the gate was set, each text has most of that of its own branch, among all texts and among all branches."""
    more = "lm.steps=40 lm.labelled_steps=15 lm.rows=8 lm.eval_every=40 lm.learning_rate=0.03".split()
    done = svf_rl(*three, *more, "run_dir=run")
    assert done.code == 0, done.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    names = ["general", "special1", "special2", "special3"]
    gates = torch.tensor([summary[name]["gates"] for name in names])  # [text, layer, branch]
    assert gates.shape == (4, 2, 4)
    for layer in gates.unbind(1):
        assert layer.argmax(0).tolist() == layer.argmax(1).tolist() == [0, 1, 2, 3], layer
    assert all(summary[name]["closed_is_base"] for name in names)
    assert all(summary[name]["perplexity"]["adapted"] < summary[name]["perplexity"]["base"] for name in names[1:])
    assert "special1: ships.txt, special2: trees.txt, special3: sums.txt" in done.out
    assert (tmp_path / "run" / "gates.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_step_is_that_of_all_corpora_together(svf_rl: Callable[..., Any], three: list[str], tmp_path: Path) -> None:
    """The base's perplexity that a run starts from is the geometric mean of those on each corpus's held-out rows."""
    assert svf_rl(*three, "run_dir=run", "lm.steps=1").code == 0
    base = load_base(BaseConfig(path=three[2].removeprefix("base="), device="cpu"))
    nats = [
        language.held_out_nats(base, windows(read_corpus(str(tmp_path / name)), base.codec, 17, "valid")).mean().item()
        for name in ("ships.txt", "trees.txt", "sums.txt")
    ]
    _, about = read_tensors(tmp_path / "run" / "checkpoint.safetensors")
    assert 1 / json.loads(about["progress"])["base_valid"] == pytest.approx(math.exp(sum(nats) / 3), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["adapter.specialists=2"], "expected one corpus, or one for each of adapter.specialists=2, found 3 in corpus="),
        (["adapter=lora"], "expected one corpus, found 3 in corpus="),
        (["corpus=[]"], "expected one corpus, or one for each of adapter.specialists=3, found 0"),
        (["lm.rows=3"], "lm.rows=3 less lm.share of general text are fewer than the corpora, 3"),
        (["corpus=[ships.txt,trees.txt,nowhere]"], "there is no corpus 'nowhere'"),
    ],
)
def test_corpora_that_fit_no_specialists_are_refused(
    svf_rl: Callable[..., Any], three: list[str], change: list[str], says: str
) -> None:
    words = [word for word in three if not (change == ["adapter=lora"] and word.startswith("adapter."))]
    assert svf_rl(*words, *change).mistake.startswith(says)


def test_several_seeds_end_in_a_table_over_them(svf_rl: Callable[..., Any], words: list[str], tmp_path: Path) -> None:
    done = svf_rl(*words, "adapter=shiftable", "run_dir=runs/run", "lm.learning_rate=0.05", "seed=0,1,2")
    assert done.code == 0, done.err
    found = [json.loads((tmp_path / f"runs/run/seed{seed}/summary.json").read_text()) for seed in (0, 1, 2)]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.out.splitlines() if line.startswith("| ships.txt")]
    assert [row[2:4] for row in rows] == [
        *([text, seed] for seed in "012" for text in ("special", "general")),
        ["special", "0, 1, 2"],
        ["general", "0, 1, 2"],
    ]
    for row, text in zip(rows[-2:], ("special", "general"), strict=True):
        after = [summary[text]["perplexity"]["adapted"] for summary in found]
        low, high = scipy.stats.ttest_1samp(after, 0).confidence_interval()
        assert row[4] == f"{found[0][text]['perplexity']['base']:.2f}"
        assert row[5] == f"{sum(after) / 3:.2f} [{low:.2f}, {high:.2f}]"
        base_gates = [sum(layer[0] for layer in summary[text]["gates"]) / 2 for summary in found]
        assert row[7].startswith(f"{sum(base_gates) / 3:.2f}")
        assert row[8] == "yes"
    again = svf_rl("table", "out=found")
    assert again.code == 0
    assert [line.split("|")[4:8] for line in again.out.splitlines() if line.startswith("| ships.txt")] == [
        line.split("|")[4:8] for line in done.out.splitlines() if line.startswith("| ships.txt") and "0, 1, 2" in line
    ]
    lines = json.loads((tmp_path / "found.json").read_text())["texts"]
    assert [(line["corpus"], line["text"]) for line in lines] == [("ships.txt", "special"), ("ships.txt", "general")]
    assert "lm.steps=4" in lines[0]["settings"].split()
    assert "objective" not in lines[0]["settings"]


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


@pytest.mark.slow
def test_a_specialist_learns_its_domain_and_keeps_to_it(svf_rl: Callable[..., Any], tmp_path: Path) -> None:
    """The whole workflow with its defaults on the embedded base: what the README says of it, with room to spare."""
    done = svf_rl("train", "objective=lm", "adapter=shiftable", "corpus=special", "run_dir=run", "base.device=cpu")
    assert done.code == 0, done.err
    special, general = (json.loads((tmp_path / "run" / "summary.json").read_text())[name] for name in ("special", "general"))
    assert math.exp(special["nats_ci95"][1]) < 0.9
    assert general["closed_is_base"]
    assert general["perplexity"]["closed"] == general["perplexity"]["base"]
    for on, off in zip(special["gates"], general["gates"], strict=True):
        assert off[1] < 0.5 < on[1]
