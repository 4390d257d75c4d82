"""Learned soft masks in a small language model that is trained from scratch with them.

The forms are those of svf_rl/attention/soft_mask.py; none is the same model without a mask. A gate is the sigmoid of a form that
has one (bilinear, original), else the factor itself; saturated ones are below 0.01 or above 0.99, over all pairs of a token and an
earlier one. The published mask's own start, at its temperature of 20, is measured too.

Left in the folder: of every form and seed the model after each epoch, and the losses of all batches as a histogram for each epoch.
The first seed of a form writes text with a cache, within the context and beyond it, from its stored model: another prompt trains
nothing again.

Source: gangasingh7058/Learned-Attention at ee83994: the model's sizes, histograms, checkpoints, writing from a prompt.
Differs from the source: a validation and a test text; the cosine goes by the step; embeddings start at 0.02, not at 1, which there
makes the first loss 244 nats; original reads the layer's normed input and has no attention of its own.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure as Plot
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache

from svf_rl.attention.soft_mask import Annealed, Form, Predictor, SoftMaskConfig, make_soft_mask
from svf_rl.errors import UserError, check_at_least
from svf_rl.evaluate.figures import COLOURS, png
from svf_rl.evaluate.stats import mean_interval
from svf_rl.files import write_bytes, write_text
from svf_rl.progress import Progress
from svf_rl.settings import listed
from svf_rl.studies.losses import draw, histograms
from svf_rl.studies.parts import part, to_csv
from svf_rl.studies.scratch import Language, Shape, Text, as_base, judge, new_model, peak, read_text, verdict
from svf_rl.studies.training import Recipe, load_model, train

FORMS = ("none", *map(str, Form))
SHARP = 20.0  # the published temperature


@dataclass(frozen=True)
class SoftMaskStudyConfig:
    """Settings of the study; configs/study.yaml says what each key does."""

    forms: str = "[none,bilinear,original,forget]"
    seeds: int = 3
    corpus: str = "general"
    tokenizer: str = "embedded"
    width: int = 256
    layers: int = 4
    heads: int = 4
    feed_forward: int = 704
    context: int = 128
    rank: int = 8
    temperature: float = 5.0
    anneal_steps: int = 50
    openness: float = 0.0
    predictor: Predictor = Predictor.attention
    epochs: int = 2
    batches: int = 80
    rows: int = 8
    learning_rate: float = 0.002
    prompt: str = "The value of the"
    tokens: int = 200

    def __post_init__(self) -> None:
        wrong = [name for name in listed(self.forms) if name not in FORMS]
        if wrong or not listed(self.forms):
            raise UserError(f"expected soft_mask.forms among {list(FORMS)}, found {self.forms}")
        check_at_least(1, self, "seeds width layers heads feed_forward context rank epochs batches rows tokens", "soft_mask.")
        if self.width % (2 * self.heads):
            raise UserError(f"expected a width that is an even multiple of heads, found {self.width} and {self.heads}")
        self.mask(Form.bilinear)

    def mask(self, form: Form) -> SoftMaskConfig:
        """The settings of a mask. UserError for impossible ones."""
        how = self.predictor if form is Form.original else Predictor.linear
        return SoftMaskConfig("soft_mask", form, self.rank, self.temperature, self.anneal_steps, self.openness, how)


def run(config: SoftMaskStudyConfig, folder: Path, progress: Progress) -> dict[str, Any]:
    """Every form and seed, those that are done from the folder."""
    text = read_text(config.corpus, config.tokenizer, config.context, progress.say)
    settings = {key: value for key, value in asdict(config).items() if key not in ("forms", "seeds", "prompt", "tokens")}
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for form, seed in progress.over(list(product(listed(config.forms), range(config.seeds))), "training"):
        found[form, seed] = part(
            folder, f"{form}-seed{seed}", settings, partial(measure, form, seed, config, text, folder, progress)
        )
    rows = [summary(form, [one for (name, _), one in found.items() if name == form]) for form in listed(config.forms)]
    start = published_start(config.width, config.context, text.vocabulary)
    texts = {form: written(stored(form, config, text, folder), config, text) for form in listed(config.forms)}
    write_bytes(folder / "losses.png", figure(found))
    return {
        "table": rows,
        "findings": findings(rows, start, found, texts),
        "published_start": start,
        "written": texts,
        "parts": {f"{form}-seed{seed}": one for (form, seed), one in found.items()},
    }


def build(form: str, seed: int, config: SoftMaskStudyConfig, text: Text) -> Language:
    shape = Shape(text.vocabulary, config.width, config.layers, config.heads, config.feed_forward, config.context)
    model = new_model(shape, seed)
    if form == "none":
        return Language(model)
    return Language(model, make_soft_mask(as_base(model, text, config.context), config.mask(Form(form)), Progress(quiet=True)))


def measure(form: str, seed: int, config: SoftMaskStudyConfig, text: Text, folder: Path, progress: Progress) -> dict[str, Any]:
    """One form with one seed, trained, saved and judged."""
    name, language = f"{form}-seed{seed}", build(form, seed, config, text)
    before = saturated(language, text.valid[:16, :-1])
    recipe = Recipe(config.epochs, config.batches, config.rows, config.learning_rate)
    history = train(language, text, recipe, seed, folder / f"{name}.safetensors", progress)
    epochs = histograms(history)
    write_text(folder / f"{name}-losses.csv", to_csv(epochs))
    write_bytes(folder / f"{name}-losses.png", draw(epochs, history))
    return {
        "parameters": language.size,
        "valid": history.valid,
        "test": judge(language, text.test),
        "saturated": [before, saturated(language, text.valid[:16, :-1])],
        "seconds": statistics.median(history.seconds),
        "peak": peak(language, text.train[: config.rows]),
    }


@torch.no_grad()
def saturated(language: Language, ids: Int[Tensor, "rows time"]) -> float | None:
    """The share of gates below 0.01 or above 0.99; None without a mask."""
    if language.adapter is None:
        return None
    masks: Any = language.adapter.look(ids, return_masks=True)[1]
    gates = torch.cat([mask * _half(patch) for mask, patch in zip(masks, language.patches, strict=True)], 1)
    return _share(gates)


def _half(patch: nn.Module) -> Tensor:
    """What the sigmoid is where the factor is 1; 1 for masks without one."""
    return patch.neutral() if isinstance(patch, Annealed) else torch.ones(())


def _share(gates: Float[Tensor, "*many time time"]) -> float:
    earlier = torch.ones(gates.shape[-2:], dtype=torch.bool).tril(-1)
    return float(((gates < 0.01) | (gates > 0.99))[..., earlier].double().mean())


@torch.no_grad()
def published_start(width: int, context: int, vocabulary: int, rows: int = 16, heads: int = 4) -> float:
    """The share of saturated gates of the published first layer before any training: sigmoid(20 P(x + attention(norm x)))."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = nn.Embedding(vocabulary, width)(torch.randint(vocabulary, (rows, context)))
        attention, norm, predict = (
            nn.MultiheadAttention(width, heads, batch_first=True),
            nn.RMSNorm(width),
            nn.Linear(width, context),
        )
    normed, later = norm(x), torch.ones(context, context, dtype=torch.bool).triu(1)
    mixed = attention(normed, normed, normed, attn_mask=later, need_weights=False)[0]
    return _share((SHARP * predict(x + mixed)).sigmoid())


def stored(form: str, config: SoftMaskStudyConfig, text: Text, folder: Path) -> Language:
    """The trained model of a form's first seed."""
    language = build(form, 0, config, text)
    load_model(folder / f"{form}-seed0.safetensors", language)
    return language


def written(language: Language, config: SoftMaskStudyConfig, text: Text) -> dict[str, str]:
    """What the model writes after the prompt: until the context is full, and `tokens` tokens. A form that cannot says so."""
    prompt = [*sorted(text.codec.stop_ids)[:1], *text.codec.encode(config.prompt)]
    found = {}
    for name, count in {"within": config.context - len(prompt), "tokens": config.tokens}.items():
        try:
            found[name] = config.prompt + text.codec.decode(generate(language, prompt, count))
        except ValueError as refusal:
            found[name] = f"refused: {refusal}"
    return found


@torch.no_grad()
def generate(language: Language, prompt: Sequence[int], count: int, seed: int = 0) -> list[int]:
    """Sampled ids after a prompt of at least one; each costs a pass of one token. ValueError beyond what a form can read."""
    generator, cache, model = torch.Generator().manual_seed(seed), DynamicCache(), language.model
    ids: list[int] = list(prompt)
    new: list[int] = []
    for _ in range(count):
        logits = model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True).logits[0, -1]
        ids = torch.multinomial(F.softmax(logits, -1), 1, generator=generator).tolist()
        new += ids
    return new


def summary(form: str, own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds; the interval is over seeds, of the mean nats per token, as perplexity."""
    test = mean_interval([one["test"]["nats"] for one in own])
    before, after = ([one["saturated"][i] for one in own if one["saturated"][i] is not None] for i in (0, 1))
    return {
        "form": form,
        "parameters": own[0]["parameters"],
        "valid": math.exp(statistics.mean(one["valid"][-1] for one in own)),
        "test": math.exp(test.value),
        "low": math.exp(test.low),
        "high": math.exp(test.high),
        "saturated": statistics.mean(before) if before else None,
        "after": statistics.mean(after) if after else None,
        "s/step": statistics.mean(one["seconds"] for one in own),
        "MiB": own[0]["peak"],
    }


def findings(
    rows: Sequence[Mapping[str, Any]],
    start: float,
    found: Mapping[tuple[str, int], Mapping[str, Any]],
    texts: Mapping[str, Mapping[str, str]],
) -> list[str]:
    """What the figures come to, in sentences. texts: as `written` gives them, by form."""
    said = [
        f"The published mask, before any training, at its temperature of {SHARP:g}: {100 * start:.0f} % of its gates are saturated."
    ]
    for row in rows:
        less = [
            found["none", seed]["test"]["nats"] - one["test"]["nats"]
            for (form, seed), one in found.items()
            if form == row["form"] != "none" and ("none", seed) in found
        ]
        if less:
            mean = mean_interval(less)
            how = verdict(mean)
            lower = f"{mean.value:+.4f} [{mean.low:+.4f}, {mean.high:+.4f}] nats"
            said.append(f"{row['form']}: {how} no mask, its test loss is lower by {lower}.")
    refused = [form for form, text in texts.items() if text["tokens"].startswith("refused")]
    return said + [f"{form} cannot write beyond its context." for form in refused]


def figure(found: Mapping[tuple[str, int], Mapping[str, Any]]) -> bytes:
    """Validation loss after every epoch, of every form and seed."""
    plot = Plot(figsize=(7, 3.6), layout="constrained")
    axes, forms = plot.subplots(), list(dict.fromkeys(form for form, _ in found))
    for (form, seed), one in found.items():
        epochs, colour = range(1, 1 + len(one["valid"])), COLOURS[forms.index(form) % len(COLOURS)]
        axes.plot(epochs, one["valid"], marker="o", color=colour, label=form if seed == 0 else None)
    axes.set(xlabel="epoch", ylabel="validation nats per token")
    axes.legend()
    return png(plot)
