"""A forward pass of padded rows that runs on their tokens alone: only attention sees the padding.

    tokens      [1, n, width]               linear layers, norms, positions: everything but attention
    rows        [rows, heads, time, width]  queries, keys and values within attention, zeros where there is no token

Source: packed sequences, as in flash-attention's padding-free training. Differs: the rows are put together again for the library's
own attention function, so it is right on any device and with any mask.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from svf_rl.base.load import Base

NAME = "svf_rl_packed"
Masks = Tensor | dict[str, Tensor]  # [rows, 1, time, time], or one for each kind of layer


def packed_hidden(
    base: Base, ids: Int[Tensor, "rows time"], positions: Int[Tensor, "rows time"], masks: Masks, there: Bool[Tensor, "rows time"]
) -> Float[Tensor, "rows time width"]:
    """The final hidden states of all tokens that are there, zeros elsewhere; for a base that attends by the library's "sdpa"."""
    places = there.flatten().nonzero()[:, 0]
    with _attending(base):
        how = {"position_ids": positions[there][None], "attention_mask": masks, "use_cache": False, "places": places}
        states = base.hidden(ids[there][None], **how)
    return _padded(states[0], places, *ids.shape)


def _padded(
    tokens: Float[Tensor, "n *shape"], places: Int[Tensor, " n"], rows: int, time: int
) -> Float[Tensor, "rows time *shape"]:
    flat = tokens.new_zeros(rows * time, *tokens.shape[1:]).index_copy(0, places, tokens)
    return flat.view(rows, time, *tokens.shape[1:])


def _attend(module: Any, *qkv: Any, places: Int[Tensor, " n"], **how: Any) -> tuple[Float[Tensor, "1 n heads width"], None]:
    """qkv: query, key, value [1, heads, n, width] and the mask of the rows."""
    *parts, mask = qkv
    rows = (_padded(x[0].transpose(0, 1), places, len(mask), mask.shape[-1]).transpose(1, 2) for x in parts)
    found, _ = sdpa_attention_forward(module, *rows, mask, **how)
    return found.flatten(0, 1).index_select(0, places)[None], None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


@contextmanager
def _attending(base: Base) -> Iterator[None]:
    """Within it, the base attends to rows that its tokens stand for."""
    config = base.model.config
    before, config._attn_implementation = config._attn_implementation, NAME
    try:
        yield
    finally:
        config._attn_implementation = before
