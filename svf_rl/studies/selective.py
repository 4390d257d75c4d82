"""Attention whose keys and values are made for every pair, against standard attention with as many parameters; characters.

standard        a Llama.                    torch   the same function in plain torch (reference.py), from the same weights.
linear          query and key side by side, mapped: standard attention plus a map of the query, and under RoPE a relative bias.
                The source calls it selective, and here it has that name too.
multiplicative  the query multiplies keys and values.              nonlinear   a hidden layer for every pair.

Forms that need fewer parameters get a wider feed-forward layer, until all are equal to less than one of its units. The source's
form as it is written, with keys and values [n, n, d], is timed for one step beside the exact fast one, and is not trained.

Source: pierrot-lc/selective-attention, README: its comparison of 191 000 with 224 000 parameters, one seed, held-out loss 1.475
against 1.448, 4 times as slow.
Differs from the source: equal parameters, several seeds, a validation and a test text that no training sees; an output projection,
SwiGLU and RMS norms before the layers; scores are divided by the square root of the head's size.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from jaxtyping import Float
from matplotlib.figure import Figure as Plot
from torch import Tensor

from svf_rl.attention.adapter import AttentionAdapter
from svf_rl.attention.host import Call
from svf_rl.attention.selective import Form, Linear, SelectiveConfig, make_selective, naive
from svf_rl.errors import UserError, check_at_least
from svf_rl.evaluate.figures import COLOURS, png
from svf_rl.evaluate.stats import Interval, mean_interval
from svf_rl.files import write_bytes
from svf_rl.progress import Progress
from svf_rl.settings import listed
from svf_rl.studies.parts import part
from svf_rl.studies.reference import Reference
from svf_rl.studies.scratch import Language, Shape, Text, as_base, backward, judge, new_model, peak, read_text, verdict
from svf_rl.studies.training import Recipe, train

TYPES = ("standard", *map(str, Form), "torch")
ALIASES = {"selective": str(Form.linear)}
TRUTH = (
    "With a linear map of query and key side by side the weights over j are those of standard attention (under RoPE, with a term "
    "that depends on the distance), and the output is standard attention's plus a map of the query: no form of it sees pairs."
)


@dataclass(frozen=True)
class SelectiveStudyConfig:
    """Settings of the study; configs/study.yaml says what each key does."""

    mha_type: str = "[standard,linear,multiplicative,nonlinear,torch]"
    rope: str = "[true,false]"
    seeds: int = 3
    corpus: str = "general"
    tokenizer: str = "characters"
    width: int = 64
    layers: int = 4
    heads: int = 2
    length: int = 256
    rank: int = 32
    hidden: int = 2
    epochs: int = 2
    batches: int = 60
    rows: int = 8
    learning_rate: float = 0.005
    naive_rows: int = 1

    def __post_init__(self) -> None:
        wrong = set(self.types) - set(TYPES)
        if wrong or not self.types or set(listed(self.rope)) - {"true", "false"} or not listed(self.rope):
            known, found = [*TYPES, *ALIASES], f"{self.mha_type} and {self.rope}"
            raise UserError(f"expected selective.mha_type among {known} and selective.rope true or false, found {found}")
        check_at_least(1, self, "seeds width layers heads length rank hidden epochs batches rows", "selective.")
        check_at_least(0, self, "naive_rows", "selective.")
        if self.width % (2 * self.heads):
            raise UserError(f"expected a width that is an even multiple of heads, found {self.width} and {self.heads}")

    @property
    def types(self) -> list[str]:
        """The names in mha_type, each once."""
        return list(dict.fromkeys(ALIASES.get(name, name) for name in listed(self.mha_type)))


@dataclass(frozen=True)
class Cell:
    """One kind of attention, with or without RoPE, and one seed."""

    mha_type: str
    rope: bool
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.mha_type}-{'rope' if self.rope else 'plain'}-seed{self.seed}"


class Naive(Linear):
    """The linear form as it is defined, with the keys and values of all pairs. For whole sequences under RoPE."""

    def attend(self, call: Call) -> Float[Tensor, "B T H d"]:
        assert self.key is not None
        own = self.key.of(call.hidden), self.value.of(call.hidden)
        return naive(call.query, call.key, call.value, *own, call.turn, call.visible[0]).transpose(1, 2)


def run(config: SelectiveStudyConfig, folder: Path, progress: Progress) -> dict[str, Any]:
    """Every kind of attention and seed, those that are done from the folder."""
    text = read_text(config.corpus, config.tokenizer, config.length, progress.say)
    kinds = [(kind, rope == "true") for kind, rope in product(config.types, listed(config.rope))]
    cells = [Cell(*kind, seed) for kind in kinds for seed in range(config.seeds)]
    settings = {key: value for key, value in asdict(config).items() if key not in ("mha_type", "rope", "seeds", "naive_rows")}
    found: dict[Cell, dict[str, Any]] = {}
    for cell in progress.over(cells, "training"):
        found[cell] = part(folder, cell.name, settings, partial(measure, cell, config, text, folder, progress))
    rows = [summary([cell for cell in cells if (cell.mha_type, cell.rope) == kind], found) for kind in kinds]
    costs = {}
    if config.naive_rows:
        costs = part(folder, "naive", settings | {"naive_rows": config.naive_rows}, partial(naive_costs, config, text))
    write_bytes(folder / "losses.png", figure(rows))
    return {"table": rows, "findings": findings(rows, costs), "naive": costs, "parts": {c.name: one for c, one in found.items()}}


def build(cell: Cell, config: SelectiveStudyConfig, text: Text) -> Language:
    """The model of a cell, with as many parameters as any other."""
    shape = Shape(text.vocabulary, config.width, config.layers, config.heads, 8 * config.width // 3, config.length, cell.rope)
    most = max(_attach(Cell(kind, True), config, replace(shape, rope=True), text).size for kind in TYPES)
    lack = most - _attach(cell, config, shape, text).size
    wider = shape.feed_forward + round(lack / (3 * config.width * config.layers))
    return _attach(cell, config, replace(shape, feed_forward=wider), text)


def _attach(cell: Cell, config: SelectiveStudyConfig, shape: Shape, text: Text) -> Language:
    model = new_model(shape, cell.seed)
    if cell.mha_type == "torch":
        return Language(Reference(shape).take(model))
    if cell.mha_type == "standard":
        return Language(model)
    settings = SelectiveConfig(form=Form(cell.mha_type), rank=config.rank, hidden=config.hidden)
    return Language(model, make_selective(as_base(model, text, config.length), settings, Progress(quiet=True)))


def measure(cell: Cell, config: SelectiveStudyConfig, text: Text, folder: Path, progress: Progress) -> dict[str, Any]:
    """A cell, trained, saved and judged."""
    language = build(cell, config, text)
    recipe = Recipe(config.epochs, config.batches, config.rows, config.learning_rate)
    history = train(language, text, recipe, cell.seed, folder / f"{cell.name}.safetensors", progress)
    return {
        "parameters": language.size,
        "valid": history.valid,
        "test": judge(language, text.test),
        "seconds": statistics.median(history.seconds),
        "peak": peak(language, text.train[: config.rows]),
    }


def naive_costs(config: SelectiveStudyConfig, text: Text) -> dict[str, Any]:
    """Seconds and MiB of a training step of `naive_rows` rows, of the form as it is written and of the fast one."""
    shape = Shape(text.vocabulary, config.width, config.layers, config.heads, 8 * config.width // 3, config.length)
    settings, ids, found = SelectiveConfig(form=Form.linear, rank=config.rank), text.train[: config.naive_rows], {}
    for name, kind in (("naive", Naive), ("fast", Linear)):
        model = new_model(shape, 0)
        language = Language(model, AttentionAdapter(model, settings, partial(kind, config=settings)))
        backward(language, ids)  # the first one is slower
        begun = time.perf_counter()
        backward(language, ids)
        found[name] = {"rows": len(ids), "seconds": time.perf_counter() - begun, "peak": peak(language, ids)}
    return found


def summary(cells: Sequence[Cell], found: Mapping[Cell, Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds. less: nats per character below standard attention's of the same seed; intervals are over seeds."""
    own = [found[cell] for cell in cells]
    test = mean_interval([one["test"]["nats"] for one in own])
    standard = [found.get(replace(cell, mha_type="standard")) for cell in cells]
    less = [s["test"]["nats"] - one["test"]["nats"] for s, one in zip(standard, own, strict=True) if s]
    return {
        "mha": cells[0].mha_type,
        "rope": cells[0].rope,
        "parameters": own[0]["parameters"],
        "valid": statistics.mean(one["valid"][-1] for one in own),
        "test": test.value,
        "low": test.low,
        "high": test.high,
        "top1": statistics.mean(one["test"]["accuracy"] for one in own),
        **dict(zip(("less", "less_low", "less_high"), mean_interval(less) if less else [None] * 3, strict=True)),
        "steps/s": 1 / statistics.mean(one["seconds"] for one in own),
        "MiB": own[0]["peak"],
    }


def findings(rows: Sequence[Mapping[str, Any]], costs: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What the figures come to, in sentences."""
    said = [TRUTH]
    for row in rows:
        if row["mha"] != "standard" and row["less"] is not None:
            how = verdict(Interval(row["less"], row["less_low"], row["less_high"]))
            lower = f"{row['less']:+.4f} [{row['less_low']:+.4f}, {row['less_high']:+.4f}] nats"
            rope = "RoPE" if row["rope"] else "no RoPE"
            said.append(f"{row['mha']}, {rope}: {how} standard, its test loss is lower by {lower}.")
    if costs:
        slow, fast = costs["naive"], costs["fast"]
        times, memory = slow["seconds"] / fast["seconds"], slow["peak"] / fast["peak"]
        said.append(f"The linear form as it is written: {times:.1f} times the seconds of the fast one, {memory:.0f} times the MiB.")
    return said


def figure(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Test loss of every kind, with its interval over seeds."""
    plot = Plot(figsize=(7, 3.6), layout="constrained")
    axes = plot.subplots()
    kinds = list(dict.fromkeys(row["mha"] for row in rows))
    for rope, colour in ((True, COLOURS[0]), (False, COLOURS[1])):
        own = [row for row in rows if row["rope"] == rope]
        across = [kinds.index(row["mha"]) + (-0.1 if rope else 0.1) for row in own]
        span = [[row["test"] - row["low"] for row in own], [row["high"] - row["test"] for row in own]]
        if own:
            label = "RoPE" if rope else "no RoPE"
            axes.errorbar(across, [row["test"] for row in own], yerr=span, fmt="o", color=colour, capsize=3, label=label)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set(ylabel="test nats per token")
    axes.legend()
    return png(plot)
