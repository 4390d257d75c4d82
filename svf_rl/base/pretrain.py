"""How the embedded base was made: next-token training of a small Llama, reproducibly, on two CPU cores; and how to make your own.

    svf-rl pretrain                      (about an hour; Ctrl-C is safe, the same command goes on)
    svf-rl pretrain corpus=notes/        (a base of the same shape from the training side of any corpus of texts.py)

Output, in `run_dir`: config.json, model.safetensors and tokenizer.json in Hugging Face layout, loss.jsonl, loss.png. The weights
are rounded to bfloat16 in the file (half the bytes) and load as float32.

Source: the recipe of karpathy/nanoGPT train.py (AdamW, betas 0.9 and 0.95, decay on matrices only, warm-up and cosine).
Differs from the source:
1. Rows start at the start of a document, and the last tenth of the steps uses rows four times as long, so that short documents are
   learnt fast and long prompts still work.
   (Rows of your own corpus follow one another, whatever their length.)
2. A batch is a pure function of (seed, step), so that resuming repeats nothing and skips nothing.
"""

import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from svf_rl.base import corpus, tokenizer
from svf_rl.base.texts import OwnCorpus
from svf_rl.errors import UserError
from svf_rl.files import read_tensors, write_json, write_tensors, write_text
from svf_rl.progress import Progress

TOKENIZER_DOCUMENTS = 60_000


@dataclass(frozen=True)
class PretrainConfig:
    """Shape and recipe. corpus: one of texts.py; None is the embedded base's. Tokens seen = steps x rows x length.

    compile: 1.6 times as fast, needs a C++ compiler.
    """

    corpus: str | None = None
    seed: int = 0
    steps: int = 2400
    rows: int = 64
    length: int = 128
    learning_rate: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.1
    vocab_size: int = 2048
    hidden_size: int = 192
    layers: int = 4
    heads: int = 6
    feed_forward: int = 512
    context: int = 512
    save_every: int = 100
    compile: bool = True
    run_dir: str = "runs/pretrain"


def new_model(config: PretrainConfig, codec: tokenizer.TextCodec) -> LlamaForCausalLM:
    """A Llama with random weights, tied embeddings, in float32."""
    end = min(codec.stop_ids)
    shape = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        intermediate_size=config.feed_forward,
        max_position_embeddings=config.context,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=codec.pad_id,
    )
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(shape)


def learning_rate(config: PretrainConfig, step: int) -> float:
    """Linear warm-up, then cosine to a hundredth of the peak."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def batch_shape(config: PretrainConfig, step: int) -> tuple[int, int]:
    """(rows, length) of a step: rows four times as long in the last tenth."""
    late = step >= 0.9 * config.steps
    return (max(1, config.rows // 4), config.length * 4) if late else (config.rows, config.length)


def next_token_loss(model: nn.Module, ids: Int[Tensor, "rows time"]) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of ids[:, 1:] given what precedes them; ids is [rows, length + 1]."""
    logits = model(ids[:, :-1]).logits
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def pretrain(config: PretrainConfig, progress: Progress) -> Path:
    """Make the base; returns its folder. A run that was interrupted goes on from its last checkpoint."""
    folder = _folder(config.run_dir)
    texts: corpus.Corpus | OwnCorpus = corpus.Corpus() if config.corpus is None else OwnCorpus(config.corpus)
    codec = _tokenizer(config, texts, folder / "tokenizer.json")
    if isinstance(texts, OwnCorpus):
        _check_size(config, texts, codec)
    model = new_model(config, codec)
    optimizer = _optimizer(model, config)
    start = _resume(folder / "checkpoint.safetensors", model, optimizer, config.corpus)
    curve = _read_curve(folder / "loss.jsonl", start)
    loss_of: Callable[..., Tensor] = torch.compile(next_token_loss) if config.compile else next_token_loss
    for step in progress.steps(start, config.steps, "pretraining"):
        begun = time.monotonic()
        ids = texts.batch(codec, config.seed, step, *batch_shape(config, step))
        loss = _update(model, optimizer, loss_of, ids, learning_rate(config, step))
        curve.append({"step": step, "loss": loss, "seconds": time.monotonic() - begun})
        progress.show(loss=f"{loss:.3f}", tokens_per_second=round(ids.numel() / curve[-1]["seconds"]))
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            _save_checkpoint(folder, model, optimizer, step + 1, curve, config.corpus)
    export(model, codec, folder)
    tokens = sum(math.prod(batch_shape(config, step)) for step in range(config.steps))
    seconds = round(sum(row["seconds"] for row in curve))
    facts = {
        "config": asdict(config),
        "python": platform.python_version(),
        "seconds": seconds,
        "tokens": tokens,
        **_held_out(config, texts, model, codec),
    }
    write_json(folder / "pretrain.json", facts)
    _plot(curve, folder / "loss.png")
    return folder


def _folder(path: str) -> Path:
    """The run's folder, made if need be. UserError where that is impossible."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to the run folder {path!r} ({error.strerror}); choose another run_dir") from error
    return Path(path)


def _tokenizer(config: PretrainConfig, texts: corpus.Corpus | OwnCorpus, path: Path) -> tokenizer.TextCodec:
    if not path.exists():
        tokenizer.train(texts.sample(config.seed, TOKENIZER_DOCUMENTS), config.vocab_size, path)
    return tokenizer.embedded_codec(path)


def _check_size(config: PretrainConfig, texts: OwnCorpus, codec: tokenizer.TextCodec) -> None:
    """UserError, before the first step, where the corpus is too small for the rows of the last or for those that test."""
    _, longest = batch_shape(config, config.steps)
    if longest > config.context:
        raise UserError(
            f"the last steps have rows of 4 x length = {longest}, more than context={config.context}; give a shorter length"
        )
    for length, which in ((config.length, "train"), (longest, "train"), (config.length, "test")):
        texts.rows(codec, length, which)


def _held_out(
    config: PretrainConfig, texts: corpus.Corpus | OwnCorpus, model: LlamaForCausalLM, codec: tokenizer.TextCodec
) -> dict[str, dict[str, float]]:
    """The finished base's loss on text that it has not seen."""
    if isinstance(texts, OwnCorpus):
        return {"held_out_loss": rows_loss(model, texts.rows(codec, config.length, "test"))}
    return {"human_loss": human_loss(model, codec)}


def _optimizer(model: nn.Module, config: PretrainConfig) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[..., Tensor], ids: Tensor, rate: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = loss_of(model, ids)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def _save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, curve: list[dict[str, float]], own: str | None
) -> None:
    tensors = {"step": torch.tensor(step)}
    for name, parameter in model.named_parameters():
        moments = optimizer.state[parameter]
        tensors |= {f"p.{name}": parameter, f"m.{name}": moments["exp_avg"], f"v.{name}": moments["exp_avg_sq"]}
    write_text(folder / "loss.jsonl", "".join(json.dumps(row) + "\n" for row in curve))
    write_tensors(folder / "checkpoint.safetensors", tensors, {"corpus": own} if own else None)


@torch.no_grad()
def _resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, own: str | None) -> int:
    """Load a checkpoint if there is one; the step to go on with. UserError if it is damaged, or of another corpus or shape."""
    if not path.exists():
        return 0
    try:
        stored, about = read_tensors(path)
    except OSError as error:
        raise UserError(f"the checkpoint {str(path)!r} is damaged ({error}); delete it to start again") from error
    if about.get("corpus") != own:
        raise UserError(f"the checkpoint {str(path)!r} is of a base on another corpus, {about.get('corpus')}; give another run_dir")
    shapes = {name.removeprefix("p."): t.shape for name, t in stored.items() if name.startswith("p.")}
    if shapes != {name: p.shape for name, p in model.named_parameters()}:
        raise UserError(f"the checkpoint {str(path)!r} is of a model of another shape; give its settings, or another run_dir")
    for name, parameter in model.named_parameters():
        parameter.copy_(stored[f"p.{name}"])
        moments = {"exp_avg": stored[f"m.{name}"], "exp_avg_sq": stored[f"v.{name}"], "step": stored["step"].float()}
        optimizer.state[parameter] = {key: value.clone() for key, value in moments.items()}
    return int(stored["step"])


def _read_curve(path: Path, steps: int) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()][:steps] if path.exists() and steps else []


def export(model: LlamaForCausalLM, codec: tokenizer.TextCodec, folder: Path) -> None:
    """Round the weights to bfloat16, which halves the file, and write the Hugging Face layout; they load as float32."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    tensors = {name: p.bfloat16() for name, p in model.named_parameters()}
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    model.config.dtype = torch.float32
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(folder)
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token=tokenizer.END,
        eos_token=tokenizer.END,
        pad_token=tokenizer.PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=model.config.max_position_embeddings,
    )
    fast.save_pretrained(folder)


@torch.no_grad()
def human_loss(model: LlamaForCausalLM, codec: tokenizer.TextCodec) -> dict[str, float]:
    """Next-token loss on the held-out human passages: nats per token, and bits per byte of text."""
    nats, tokens, size = 0.0, 0, 0
    for text in corpus.human_text(held_out=True):
        ids = torch.tensor([codec.prompt(text)[: model.config.max_position_embeddings + 1]])
        nats += next_token_loss(model, ids).item() * (ids.shape[1] - 1)
        tokens, size = tokens + ids.shape[1] - 1, size + len(text.encode())
    return {"nats_per_token": nats / tokens, "bits_per_byte": nats / size / math.log(2), "tokens": tokens}


@torch.no_grad()
def rows_loss(model: LlamaForCausalLM, rows: Int[Tensor, "n time"]) -> dict[str, float]:
    """Mean next-token loss on held-out rows in nats per token, and the perplexity that it is."""
    nats = sum(next_token_loss(model, part).item() * len(part) for part in rows.split(16)) / len(rows)
    return {"nats_per_token": nats, "perplexity": math.exp(nats), "tokens": rows[:, 1:].numel()}


def _plot(curve: list[dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure  # slow to import, and only this needs it

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([row["step"] for row in curve], [row["loss"] for row in curve], linewidth=0.8)
    axes.set(xlabel="step", ylabel="loss (nats per token)", title="Pretraining", ylim=(0, None))
    figure.savefig(path, dpi=120)
