"""A decoder in plain torch, written apart from everything else here: what the models from scratch are compared with.

    x += W_o softmax(R(q) R(k)ᵀ / sqrt(d)) v      x += W_down (silu(W_gate x) * W_up x)      each of the RMS norm of x

RoPE turns pairs of dimensions as complex numbers, i with i + d/2. Its parameters are named as those of transformers' Llama.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from svf_rl.studies.scratch import Shape

EPSILON, THETA = 1e-6, 10_000.0  # LlamaConfig's own


class Layer(nn.Module):
    """One layer of the decoder."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, hidden = shape.width, shape.feed_forward
        sizes = {"q": (width, width), "k": (width, width), "v": (width, width), "o": (width, width)}
        sizes |= {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
        self.maps: Any = nn.ModuleDict({name: nn.Linear(*size, bias=False) for name, size in sizes.items()})
        self.norms = nn.ModuleList(nn.RMSNorm(width, EPSILON) for _ in range(2))

    def forward(self, x: Float[Tensor, "rows time width"], turn: Tensor | None) -> Float[Tensor, "rows time width"]:
        heads = (self.maps[name](self.norms[0](x)).unflatten(-1, (self.shape.heads, -1)).transpose(1, 2) for name in "qkv")
        query, key, value = heads
        if turn is not None:
            query, key = _turned(query, turn), _turned(key, turn)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.maps["o"](mixed)
        inner = self.norms[1](x)
        after: Tensor = x + self.maps["down"](F.silu(self.maps["gate"](inner)) * self.maps["up"](inner))
        return after


class Reference(nn.Module):
    """ids [rows, time] -> logits."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.layers: Any = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, EPSILON)

    def forward(self, ids: Int[Tensor, "rows time"]) -> Float[Tensor, "rows time vocabulary"]:
        half = self.shape.width // self.shape.heads // 2
        speed = THETA ** -(torch.arange(half) / half)
        turn = torch.polar(torch.ones(ids.shape[1], half), torch.arange(ids.shape[1])[:, None] * speed) if self.shape.rope else None
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, turn)
        return F.linear(self.norm(x), self.embedding.weight)

    @torch.no_grad()
    def take(self, llama: nn.Module) -> "Reference":
        """Copy the weights of transformers' Llama."""
        weights = {name.removeprefix("model."): p for name, p in llama.named_parameters()}
        self.embedding.weight.copy_(weights["embed_tokens.weight"])
        self.norm.weight.copy_(weights["norm.weight"])
        for i, layer in enumerate(self.layers):
            for name, linear in layer.maps.items():
                part = "mlp" if name in ("gate", "up", "down") else "self_attn"
                linear.weight.copy_(weights[f"layers.{i}.{part}.{name}_proj.weight"])
            for norm, name in zip(layer.norms, ("input_layernorm", "post_attention_layernorm"), strict=True):
                norm.weight.copy_(weights[f"layers.{i}.{name}.weight"])
        return self


def _turned(x: Float[Tensor, "rows heads time d"], turn: Tensor) -> Float[Tensor, "rows heads time d"]:
    pairs = torch.complex(*x.chunk(2, -1)) * turn
    return torch.cat([pairs.real, pairs.imag], -1)
