"""The decoder in plain torch against transformers' Llama, with the same weights."""

import dataclasses

import pytest
import torch

from svf_rl.studies.reference import Reference
from svf_rl.studies.scratch import Shape, new_model


@pytest.mark.parametrize("rope", [True, False])
def test_both_give_the_same_logits(shape: Shape, rope: bool) -> None:
    shape = dataclasses.replace(shape, rope=rope)
    model = new_model(shape, 3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    reference = Reference(shape).take(model)
    assert sum(p.numel() for p in reference.parameters()) == sum(p.numel() for p in model.parameters())
    ids = torch.randint(shape.vocabulary, (3, 11), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(reference(ids), model(ids).logits, atol=1e-4, rtol=1e-4)
