"""Small language models with random weights, with an attention module attached or without, and what they are judged by.

A Llama with random weights (RoPE, SwiGLU, RMSNorm, tied embeddings). The patches of an attention module start as the identity, and
in training.py everything is trained: the model's own weights and the patches together.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from svf_rl.attention.adapter import AttentionAdapter
from svf_rl.base.load import Base
from svf_rl.base.texts import codec_named, read_corpus, windows
from svf_rl.base.tokenizer import TextCodec
from svf_rl.evaluate.stats import Interval, mean_interval

ROWS = 32  # that are judged at a time
TIE = 0.0005  # nats, far below what any seed changes


@dataclass(frozen=True)
class Text:
    """A corpus as rows of length + 1 ids, and its tokenizer with the number of its ids."""

    train: Int[Tensor, "train length"]
    valid: Int[Tensor, "valid length"]
    test: Int[Tensor, "test length"]
    codec: TextCodec
    vocabulary: int


def read_text(corpus: str, tokenizer: str, length: int, say: Callable[[str], None]) -> Text:
    """UserError for an unknown corpus or tokenizer, or where one side does not fill a row."""
    documents = read_corpus(corpus)
    whole = "".join(documents)
    codec = codec_named(tokenizer, whole, say)
    train, valid, test = (windows(documents, codec, length + 1, side) for side in ("train", "valid", "test"))
    return Text(train, valid, test, codec, 1 + max(chain([codec.pad_id], codec.stop_ids, codec.encode(whole))))


@dataclass(frozen=True)
class Shape:
    """The sizes of a model. feed_forward: SwiGLU's hidden units."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    feed_forward: int
    context: int
    rope: bool = True


def new_model(shape: Shape, seed: int) -> Any:
    """A Llama, its weights normal with deviation 0.02. Without RoPE every position turns by nothing, and patches are told so."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        intermediate_size=shape.feed_forward,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(config)
    if not shape.rope:
        model.model.rotary_emb.inv_freq.zero_()
        model.config.rope_parameters["partial_rotary_factor"] = 0.0  # what host.Site.rotary is made of
    return model


def as_base(model: Any, text: Text, context: int) -> Base:
    """What makes an adapter asks for a base."""
    return Base(model, text.codec, "scratch", "", context, True)


class Language(nn.Module):
    """ids -> logits: a model, or one with an attention module installed. Its parameters are all that is trained."""

    def __init__(self, model: nn.Module, adapter: AttentionAdapter | None = None) -> None:
        super().__init__()
        self.model, self.adapter = model, adapter
        self.patches = nn.ModuleList(adapter.patches.values() if adapter else [])
        if adapter:
            adapter.install()

    def forward(self, ids: Int[Tensor, "rows time"]) -> Float[Tensor, "rows time vocabulary"]:
        found = self.model(ids)
        logits: Tensor = found if isinstance(found, Tensor) else found.logits
        return logits

    def constrain(self) -> None:
        if self.adapter:
            self.adapter.constrain()

    @property
    def size(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def backward(language: Language, ids: Int[Tensor, "rows length"]) -> float:
    """Mean nats of ids[:, 1:] given what precedes them. Its gradient and the penalty's are added to those of the parameters."""
    nats = F.cross_entropy(language(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    penalty = language.adapter.penalty() if language.adapter else None
    (nats if penalty is None else nats + penalty).backward()
    return float(nats.detach())


@torch.no_grad()
def judge(language: Language, rows: Int[Tensor, "rows length"]) -> dict[str, float]:
    """Nats per token with its 95 % interval over rows, and the share of tokens whose most probable guess is right."""
    nats: list[float] = []
    right = []
    for ids in rows.split(ROWS):
        logits = language(ids[:, :-1])
        nats += F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1).tolist()
        right.append((logits.argmax(-1) == ids[:, 1:]).double().mean(1))
    found = mean_interval(nats)
    return {"nats": found.value, "low": found.low, "high": found.high, "accuracy": float(torch.cat(right).mean())}


def peak(language: Language, ids: Int[Tensor, "rows length"]) -> float:
    """MiB of the most that the tensors made in one forward and backward pass held at once. Gradients are forgotten after it."""
    most = most_held(lambda: backward(language, ids))
    language.zero_grad()
    return most


def most_held(work: Callable[[], object]) -> float:
    """MiB of the most that the tensors made in a piece of work held at once."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes lines of its own amid ours
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    held = most = 0
    events: Iterable[Any] = record.profiler.kineto_results.events() if record.profiler else []
    for event in events:
        held += event.nbytes() if event.name() == "[memory]" else 0
        most = max(most, held)
    return most / 2**20


def verdict(less: Interval) -> str:
    """In words: how much lower a loss is than another, with its interval over seeds."""
    if abs(less.value) < TIE:
        return "the same as"
    if less.low == less.high:
        return "one seed against"
    return "better than" if less.low > 0 else "worse than" if less.high < 0 else "no different from"
