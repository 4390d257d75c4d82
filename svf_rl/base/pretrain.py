"""How the embedded base was made: next-token training of a small Llama on `corpus`, reproducibly, on two CPU cores.

    svf-rl pretrain                      (about an hour; Ctrl-C is safe, the same command goes on)

Output, in `run_dir`: config.json, model.safetensors and tokenizer.json in Hugging Face layout, loss.jsonl, loss.png. The weights are
rounded to bfloat16 in the file (half the bytes) and load as float32.

Source: the recipe of karpathy/nanoGPT train.py (AdamW, betas 0.9 and 0.95, decay on matrices only, warm-up and cosine).
Differs from the source:
1. Rows start at the start of a document, and the last tenth of the steps uses rows four times as long, so that short documents are
   learnt fast and long prompts still work.
2. A batch is a pure function of (seed, step), so that resuming repeats nothing and skips nothing.
"""

import json
import math
import random
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from svf_rl.base import corpus, tokenizer


@dataclass(frozen=True)
class PretrainConfig:
    """Shape and recipe. Tokens seen = steps x rows x length."""

    seed: int = 0
    steps: int = 3000
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
    return (config.rows // 4, config.length * 4) if late else (config.rows, config.length)


def next_token_loss(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Mean cross-entropy in nats of ids[:, 1:] given what precedes them; ids is [rows, length + 1]."""
    logits = model(ids[:, :-1]).logits
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
