"""The block against nn.TransformerEncoderLayer, and what a scaling of rows and a z can reach."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from svf_rl.errors import UserError
from svf_rl.files import read_tensors
from svf_rl.progress import Progress
from svf_rl.studies import block
from svf_rl.studies.block import Block, BlockConfig, SingularValueBlock, misfit, misfit_of_z

SMALL = BlockConfig(width=16, heads=2, draws=5)


def test_the_block_is_an_encoder_layer() -> None:
    torch.manual_seed(0)
    ours, theirs = Block(16, 2), nn.TransformerEncoderLayer(16, 2, 64, dropout=0.0, batch_first=True)
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([ours.maps[name].weight for name in ("query", "key", "value")]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([ours.maps[name].bias for name in ("query", "key", "value")]))
        for name, part in {"out": theirs.self_attn.out_proj, "up": theirs.linear1, "down": theirs.linear2}.items():
            part.weight.copy_(ours.maps[name].weight)
            part.bias.copy_(ours.maps[name].bias)
    x = torch.randn(3, 5, 16)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_z_moves_the_factored_block_as_its_weights_say() -> None:
    torch.manual_seed(0)
    plain = Block(16, 2).requires_grad_(False)
    factored, x = SingularValueBlock(plain), torch.randn(3, 5, 16)
    assert torch.equal(factored(x), plain(x))
    z = 1 + 0.5 * torch.randn(16)
    factored.z["down"].copy_(z)
    other = copy.deepcopy(plain)  # the factored block holds the layers of the plain one
    other.maps["down"].weight.copy_(factored.weight("down", z))
    torch.testing.assert_close(factored(x), other(x), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(factored(x), plain(x), atol=1e-3)


def test_misfits_are_nothing_where_the_target_can_be_reached() -> None:
    torch.manual_seed(0)
    weight, scale = torch.randn(6, 6), torch.rand(6) + 0.5
    factors = SingularValueBlock(Block(8, 2).requires_grad_(False)).factors["up"]
    assert misfit(weight, scale[:, None] * weight) == pytest.approx(0, abs=1e-5)
    assert misfit(weight, weight.flip(0)) > 0.1
    assert misfit_of_z(factors, (factors.U * (factors.s * torch.rand(8))) @ factors.Vt) == pytest.approx(0, abs=1e-5)


def test_the_study(tmp_path: Path) -> None:
    found = block.run(SMALL, tmp_path, Progress(quiet=True))
    rows = {row["what"]: row["found"] for row in found["table"]}
    assert (rows["numbers of one expert: z of all maps"], rows["numbers of the maps themselves"]) == (6 * 16, 4 * 256 + 2 * 1024)
    assert rows["output of both blocks, elements that differ at z = 1"] == 0
    assert rows["output after z is set back to 1, elements that differ"] == 0
    assert rows["output after a random z, mean change"] > 0.01
    assert rows["attention times a vector against scaled rows of W_o, largest difference"] < 1e-5
    assert rows["W of the mean z against the mean W, largest difference"] < 1e-5
    assert rows["a random z of W_o that the best scaling of rows misses, share"] > 0.5
    assert sum(found for what, found in rows.items() if "picks expert" in what) == pytest.approx(1)
    assert "W 64x16 = U 64x16 diag(16) Vt 16x16" in found["maps"]["up"]
    stored, _ = read_tensors(tmp_path / "expert2.safetensors")
    assert stored["down"].shape == (16,)
    assert (tmp_path / "spectrum.png").stat().st_size > 5000


def test_a_width_that_no_heads_divide_is_refused() -> None:
    with pytest.raises(UserError, match="multiple of block.heads"):
        BlockConfig(width=10, heads=4)
