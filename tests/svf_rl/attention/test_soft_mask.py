"""Every form of mask against its definition, pair by pair: multiply the base's weights, normalise again."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from svf_rl.attention.soft_mask import Form, Predictor, SoftMaskConfig
from svf_rl.base.load import Base
from svf_rl.errors import UserError


def first_layer(base: Base, adapter: Any, ids: Tensor) -> tuple[Any, Any]:
    """The patch of the first layer, and the call that it saw."""
    host = next(iter(adapter.hosts.values()))
    host.looking = True
    with torch.no_grad():
        base.model(input_ids=ids)
    host.looking = False
    return next(iter(adapter.patches.values())), host.take()


def masks(form: Form, patch: Any, call: Any) -> Tensor:
    """exp(log M) by loops over pairs, from the layer's input alone."""
    x, (heads, time) = read(patch, call), call.query.shape[1:3]
    out = torch.zeros(len(x), heads, time, time)
    for b in range(len(x)):
        for h in range(heads):
            for i in range(time):
                for j in range(i + 1):
                    out[b, h, i, j] = one(form, patch, call, x[b], b, h, i, j)
    return out


def read(patch: Any, call: Any) -> Tensor:
    """The layer's input and, where the mask has an attention of its own, what that says: causal, turned by the library."""
    if patch.config.predictor is Predictor.linear:
        return call.hidden  # type: ignore[no-any-return]
    query, key, value = (
        (call.hidden @ w.T).unflatten(-1, (patch.heads, -1)).transpose(1, 2) for w in (patch.query, patch.key, patch.value)
    )
    query, key = apply_rotary_pos_emb(query, key, *call.turn)
    scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
    hidden = torch.ones(scores.shape[-2:]).triu(1).bool()
    heads = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value
    said: Tensor = call.hidden + heads.transpose(1, 2).flatten(2) @ patch.out.T
    return said


def one(form: Form, patch: Any, call: Any, x: Tensor, b: int, h: int, i: int, j: int) -> float:
    if form is Form.bilinear:
        r = patch.config.rank
        u, w = patch.query_map[h * r : (h + 1) * r] @ x[i], patch.key_map[h * r : (h + 1) * r] @ x[j]
        z = patch.temperature * (u @ w) / math.sqrt(r) + patch.offset[h]
        return 1.0 if i == j else float(z.sigmoid() / patch.offset[h].sigmoid())
    if form is Form.original:
        return float((patch.temperature * (patch.positions[j] @ x[i])).sigmoid() * 2)
    if form is Form.forget:
        gone = sum(float(torch.nn.functional.softplus(patch.gate[h] @ x[k] + patch.gate_bias[h])) for k in range(j + 1, i + 1))
        return math.exp(-float(patch.gamma[h]) * gone)
    scale = call.options["scaling"]
    used = sum(max(0.0, float(call.query[b, 0, k] @ call.key[b, 0, j]) * scale) for k in range(j + 1, i))
    return math.exp(-float(patch.gamma[h]) * (used if j else 0.0))


@pytest.mark.parametrize(
    ("form", "predictor"), [*((form, Predictor.linear) for form in Form), (Form.original, Predictor.attention)]
)
@torch.no_grad()
def test_a_mask_multiplies_weights_that_are_normalised_again(
    form: Form, predictor: Predictor, backends: dict[str, Base], adapt: Any
) -> None:
    base = backends["qwen2-sdpa"]
    adapter = adapt(base, SoftMaskConfig(form=form, predictor=predictor))
    ids = torch.randint(0, 290, (2, 7), generator=torch.Generator().manual_seed(1))
    patch, call = first_layer(base, adapter, ids)
    truth = masks(form, patch, call)
    shown = call.masks.expand(truth.shape) * call.visible[:, None]
    assert torch.allclose(shown, truth, rtol=1e-4, atol=1e-5)
    multiplied = call.weights() * truth
    heads = (multiplied / multiplied.sum(-1, keepdim=True)) @ call.per_head(call.value)
    assert torch.allclose(patch.attend(call), heads.transpose(1, 2), rtol=1e-3, atol=1e-4)


def test_the_temperature_rises_and_is_kept(backends: dict[str, Base], adapt: Any) -> None:
    adapter = adapt(backends["llama-sdpa"], SoftMaskConfig(temperature=3.0, anneal_steps=4), stirred=False)
    name = next(n for n in adapter.state() if n.endswith("temperature"))
    found = [float(adapter.state()[name])]
    for _ in range(6):
        adapter.constrain()
        found.append(float(adapter.state()[name]))
    assert found == [1.0, 1.5, 2.0, 2.5, 3.0, 3.0, 3.0]


def test_fading_never_becomes_growing(backends: dict[str, Base], adapt: Any) -> None:
    adapter = adapt(backends["llama-sdpa"], SoftMaskConfig(form=Form.forget))
    adapter.load_state({name: -torch.ones_like(tensor) for name, tensor in adapter.state().items()})
    adapter.constrain()
    assert all(bool((t >= 0).all()) for n, t in adapter.state().items() if n.endswith("gamma"))


def test_the_original_form_knows_only_so_many_positions(backends: dict[str, Base], adapt: Any) -> None:
    base = backends["llama-sdpa"]
    adapt(base, SoftMaskConfig(form=Form.original))
    with pytest.raises(ValueError, match="128 positions"):
        base.model(input_ids=torch.zeros(1, 129, dtype=torch.long))


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match="temperature"):
        SoftMaskConfig(temperature=0.5)
    with pytest.raises(UserError, match="only form=original"):
        SoftMaskConfig(predictor=Predictor.attention)
