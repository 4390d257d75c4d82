"""ShiftableTransformerBlock: nn.TransformerEncoderLayer with specialists beside its attention, for models of one's own.

    Y = B + sum over k of  g_k (S_k - B)

as in shiftable.py, around torch's own attention module: S_k is that module with low-rank changes of its query rows and of its
output projection. The layer inside is frozen and never changed; untrained, the block computes what it does. In training the
dropout inside the attention is off, for branches that drop differently differ before they have learnt anything; the layer's
other dropouts are what they were.

Source: computermaster0101/shiftable-attention-poc, README, "Using SMA Blocks Directly".
Differs from the source: the signature, the order of norms and the masks are those of nn.TransformerEncoderLayer; there the block
has a signature of its own and is always norm-first, whatever the layer was whose attention it takes.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from svf_rl.attention.shiftable import Pool, gate_scores


class ShiftableTransformerBlock(nn.Module):
    """Arguments as nn.TransformerEncoderLayer's; beside them the number of specialists, their rank, and what the gate reads.

    pool: token, causal_mean, or sequence for encoders that see everything.  trained: the parameters that are not frozen.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = nn.functional.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        specialists: int = 1,
        rank: int = 8,
        pool: Pool = Pool.token,
    ) -> None:
        super().__init__()
        if pool == Pool.prompt:
            raise ValueError("pool=prompt is for causal language models; a block takes token, causal_mean or sequence")
        options = (d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias)
        self.layer = nn.TransformerEncoderLayer(*options, device=device, dtype=dtype).requires_grad_(False)
        self.pool, small = pool, {"device": device, "dtype": dtype}
        self.query_down = nn.Parameter(torch.randn(specialists, rank, d_model, **small) / math.sqrt(d_model))
        self.query_up = nn.Parameter(torch.zeros(specialists, d_model, rank, **small))
        self.out_down = nn.Parameter(torch.randn(specialists, rank, d_model, **small) / math.sqrt(d_model))
        self.out_up = nn.Parameter(torch.zeros(specialists, d_model, rank, **small))
        self.gate_in = nn.Parameter(torch.randn(d_model, d_model, **small) / math.sqrt(d_model))
        self.gate = nn.Parameter(torch.zeros(specialists, d_model, **small))
        self.gate_bias = nn.Parameter(torch.zeros(specialists, **small))
        self.train()

    @classmethod
    def from_layer(
        cls, layer: nn.TransformerEncoderLayer, specialists: int = 1, rank: int = 8, pool: Pool = Pool.token
    ) -> "ShiftableTransformerBlock":
        """A block around a copy of a trained layer."""
        weight, attention = layer.linear1.weight, layer.self_attn
        block = cls(
            attention.embed_dim, attention.num_heads, len(weight), bias=layer.linear1.bias is not None, device=weight.device,
            dtype=weight.dtype, specialists=specialists, rank=rank, pool=pool,
        )  # fmt: skip
        block.layer = copy.deepcopy(layer).requires_grad_(False)
        return block.train(layer.training)

    def train(self, mode: bool = True) -> "ShiftableTransformerBlock":
        """As any module's, but for the frozen attention, which stays as in evaluation."""
        super().train(mode)
        self.layer.self_attn.eval()
        return self

    @property
    def self_attn(self) -> nn.MultiheadAttention:
        """The frozen attention, where nn.TransformerEncoder looks for it."""
        return self.layer.self_attn

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
        return_gates: bool = False,
    ) -> Any:
        """As nn.TransformerEncoderLayer; with return_gates also the gates, [time, rows, 1 + K] or [rows, time, 1 + K] as src is.

        ValueError for pool=sequence in a causal call.
        """
        if self.pool == Pool.sequence and (is_causal or src_mask is not None):
            raise ValueError("pool=sequence would tell a token what follows it; a causal call takes pool=token or causal_mean")
        layer, x = self.layer, src
        masks = {"attn_mask": src_mask, "key_padding_mask": src_key_padding_mask, "is_causal": is_causal, "need_weights": False}
        normed = layer.norm1(x) if layer.norm_first else x
        gates = self.gates(normed, src_key_padding_mask)
        said = layer.dropout1(self._attention(normed, gates, masks))
        if layer.norm_first:
            x = x + said
            x = x + layer._ff_block(layer.norm2(x))
        else:
            x = layer.norm1(x + said)
            x = layer.norm2(x + layer._ff_block(x))
        return (x, gates) if return_gates else x

    def gates(self, x: Float[Tensor, "... width"], padding: Tensor | None) -> Float[Tensor, "... n"]:
        """softmax over the base and the specialists, for each token."""
        inner = x @ self.gate_in.T
        time = x.dim() - 2 if self.layer.self_attn.batch_first else 0
        if self.pool != Pool.token:
            real = torch.ones_like(inner[..., :1]) if padding is None else (~_is_padding(padding)).to(inner)[..., None]
            real = real.transpose(0, 1) if padding is not None and x.dim() == 3 and time == 0 else real
            whole = self.pool == Pool.sequence
            total, count = ((y.sum(time, keepdim=True) if whole else y.cumsum(time)) for y in (inner * real, real))
            inner = (total / count.clamp(min=1)).expand_as(inner)
        return gate_scores(inner, self.gate, self.gate_bias, None).softmax(-1)

    def _attention(self, x: Tensor, gates: Tensor, masks: dict[str, Any]) -> Tensor:
        attention = self.layer.self_attn
        base: Tensor = attention(x, x, x, **masks)[0]
        total = base
        for k in range(len(self.gate)):
            change = nn.functional.pad(self.query_up[k] @ self.query_down[k], (0, 0, 0, 2 * attention.embed_dim))
            out = attention.out_proj.weight + self.out_up[k] @ self.out_down[k]
            weights = {"in_proj_weight": attention.in_proj_weight + change, "out_proj.weight": out}
            branch = torch.func.functional_call(attention, weights, (x, x, x), masks)[0]
            total = total + gates[..., k + 1 : k + 2] * (branch - base)
        return total


def _is_padding(mask: Tensor) -> Tensor:
    """True at padding, of a boolean mask or of one that is added to the scores."""
    return mask if mask.dtype == torch.bool else mask < 0
