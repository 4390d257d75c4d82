"""A transformer block with singular-value factors, shown with real ones, and what the notebook's block does instead.

    x = norm(x + W_o attention(W_q x, W_k x, W_v x));  x = norm(x + W_2 relu(W_1 x))        W'(z) = U diag(s z) Vᵀ for each W

The notebook multiplies the output of the attention by a vector of ones, one number for each output: that scales the rows of W_o
(and its bias). It picks one of N such vectors by int(mean * N) % N of that output.

Source: dreamboat26/research-paper-implementation, Transformers2.ipynb; for W'(z), Transformer-Squared, section 3.1.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.figure import Figure as Plot
from torch import Tensor, nn
from torch.nn import functional as F

from svf_rl.errors import UserError, check_at_least
from svf_rl.evaluate.figures import COLOURS, png
from svf_rl.files import write_bytes, write_tensors
from svf_rl.progress import Progress
from svf_rl.svf.linear import SVFLinear
from svf_rl.types import Factors

MAPS = ("query", "key", "value", "out", "up", "down")


@dataclass(frozen=True)
class BlockConfig:
    """Settings of the study; configs/study.yaml says what each key does."""

    width: int = 256
    heads: int = 8
    experts: int = 3
    vocabulary: int = 1000
    draws: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(1, self, "width heads experts vocabulary draws", "block.")
        if self.width % self.heads:
            raise UserError(f"expected a block.width that is a multiple of block.heads, found {self.width} and {self.heads}")


class Block(nn.Module):
    """nn.TransformerEncoderLayer (batch_first, no dropout) with a linear layer for each map. x [rows, time, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        sizes = dict.fromkeys(MAPS, (width, width)) | {"up": (width, 4 * width), "down": (4 * width, width)}
        self.heads = heads
        self.maps: Any = nn.ModuleDict({name: nn.Linear(*size) for name, size in sizes.items()})
        self.norms: Any = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def attention(self, x: Float[Tensor, "rows time width"]) -> Float[Tensor, "rows time width"]:
        query, key, value = (self.maps[name](x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in MAPS[:3])
        mixed: Tensor = self.maps["out"](F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return mixed

    def forward(self, x: Float[Tensor, "rows time width"]) -> Float[Tensor, "rows time width"]:
        x = self.norms[0](x + self.attention(x))
        after: Tensor = self.norms[1](x + self.maps["down"](F.relu(self.maps["up"](x))))
        return after


class SingularValueBlock(Block):
    """The same block; z of each map is its own tensor in `z`, and ones are the block itself."""

    def __init__(self, block: Block) -> None:
        super().__init__(block.norms[0].normalized_shape[0], block.heads)
        self.norms = copy.deepcopy(block.norms)
        weights = {name: layer.weight.detach() for name, layer in block.maps.items()}
        self.factors = {name: Factors(*torch.linalg.svd(weight, full_matrices=False)) for name, weight in weights.items()}
        self.z = {name: torch.ones_like(f.s) for name, f in self.factors.items()}
        self.maps = nn.ModuleDict({name: self._layer(name, linear) for name, linear in block.maps.items()})

    def _layer(self, name: str, linear: nn.Module) -> SVFLinear:
        return SVFLinear(linear, self.factors[name], lambda: self.z[name], lambda: self.z[name]._version)

    def weight(self, name: str, z: Float[Tensor, " r"]) -> Float[Tensor, "out in"]:
        f = self.factors[name]
        return (f.U * (f.s * z)) @ f.Vt


def run(config: BlockConfig, folder: Path, progress: Progress) -> dict[str, Any]:
    """Everything that the notebook says of its block, tried."""
    torch.manual_seed(config.seed)
    block = Block(config.width, config.heads).requires_grad_(False)
    factored = SingularValueBlock(block)
    x = torch.randn(32, 10, config.width)
    z = {name: 1 + 0.3 * torch.randn(config.experts, len(f.s)) for name, f in factored.factors.items()}
    with torch.no_grad():
        rows = [*claims(block, factored, x, z), *selection(config)]
    for k in range(config.experts):
        write_tensors(folder / f"expert{k}.safetensors", {name: values[k] for name, values in z.items()})
    write_bytes(folder / "spectrum.png", figure(factored, z["out"][0]))
    return {"table": rows, "maps": maps(factored), "findings": [f"{name}: {line}" for name, line in maps(factored).items()]}


def maps(factored: SingularValueBlock) -> dict[str, str]:
    """Shapes, numbers and reconstruction error of every map."""
    said = {}
    for name, f in factored.factors.items():
        weight = factored.maps[name].base.weight
        error = float((weight - factored.weight(name, torch.ones_like(f.s))).norm() / weight.norm())
        shapes = f"W {_shape(weight)} = U {_shape(f.U)} diag({len(f.s)}) Vt {_shape(f.Vt)}"
        said[name] = f"{shapes}, error {error:.1e}, {weight.numel()} numbers in W and {len(f.s)} in z"
    return said


def _shape(x: Tensor) -> str:
    return "x".join(map(str, x.shape))


def claims(
    block: Block, factored: SingularValueBlock, x: Float[Tensor, "rows time width"], z: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """What holds of singular-value experts, and what scaling the attention's output is.

    x [rows, time, width]; z [experts, r] of every map.
    """
    f, scale = factored.factors["out"], 1 + 0.3 * torch.randn(x.shape[-1])
    untouched, weight = factored(x), block.maps["out"].weight
    _set(factored, {name: values[0] for name, values in z.items()})
    moved = factored(x)
    _set(factored, {name: torch.ones_like(values[0]) for name, values in z.items()})
    scaled, times = copy.deepcopy(block), scale * block.attention(x)
    for tensor in scaled.maps["out"].parameters():
        tensor.mul_(scale if tensor.ndim == 1 else scale[:, None])
    change = factored.weight("out", z["out"][0])
    share = torch.full((len(z["out"]),), 1 / len(z["out"]))
    mixture = sum(a * factored.weight("out", one) for a, one in zip(share, z["out"], strict=True))
    return [
        _row("output of both blocks, elements that differ at z = 1", int((untouched != block(x)).sum())),
        _row("output after a random z, mean change", float((moved - untouched).abs().mean())),
        _row("output after z is set back to 1, elements that differ", int((factored(x) != untouched).sum())),
        _row(
            "attention times a vector against scaled rows of W_o, largest difference",
            _far(scaled.attention(x), times),
        ),
        _row("a random z of W_o that the best scaling of rows misses, share", misfit(weight, change)),
        _row("the same for a random scaling of rows and the best z, share", misfit_of_z(f, scale[:, None] * weight)),
        _row("W of the mean z against the mean W, largest difference", _far(factored.weight("out", share @ z["out"]), mixture)),
        _row("numbers of one expert: z of all maps", sum(len(f.s) for f in factored.factors.values())),
        _row("numbers of one expert: the notebook's vector", x.shape[-1]),
        _row("numbers of the maps themselves", sum(m.base.weight.numel() for m in factored.maps.values())),
    ]


def _row(what: str, found: float) -> dict[str, Any]:
    return {"what": what, "found": found}


def _far(a: Tensor, b: Any) -> float:
    return float((a - b).abs().max())


def _set(factored: SingularValueBlock, z: Mapping[str, Tensor]) -> None:
    for name, values in z.items():
        factored.z[name].copy_(values)


def misfit(weight: Float[Tensor, "out in"], target: Float[Tensor, "out in"]) -> float:
    """How much of target - weight no scaling of the rows of `weight` reaches: 0 if one is the target, 1 if none helps."""
    best = (target * weight).sum(1, keepdim=True) / weight.square().sum(1, keepdim=True)
    return float((target - best * weight).norm() / (target - weight).norm())


def misfit_of_z(factors: Factors, target: Float[Tensor, "out in"]) -> float:
    """How much of target - W no z reaches. The best one is u_i target v_i / s_i."""
    best = ((factors.U.T @ target) * factors.Vt).sum(1)
    return float((target - (factors.U * best) @ factors.Vt).norm() / (target - (factors.U * factors.s) @ factors.Vt).norm())


def selection(config: BlockConfig) -> Iterator[dict[str, Any]]:
    """How often the notebook's rule picks each expert, over blocks and inputs drawn at random."""
    picked = [0] * config.experts
    for seed in range(config.draws):
        torch.manual_seed(seed)
        block, embedding = Block(config.width, config.heads), nn.Embedding(config.vocabulary, config.width)
        mean = float(block.attention(embedding(torch.randint(config.vocabulary, (32, 10)))).mean())
        picked[int(mean * config.experts) % config.experts] += 1
    for expert, count in enumerate(picked):
        yield _row(f"int(mean * N) % N picks expert {expert}, share of random blocks and inputs", count / config.draws)


def figure(factored: SingularValueBlock, z: Float[Tensor, " r"]) -> bytes:
    """Singular values of W_o, of an expert's, and of W_o with its rows scaled by as many numbers."""
    plot = Plot(figsize=(7, 3.6), layout="constrained")
    axes, f, base = plot.subplots(), factored.factors["out"], factored.weight("out", torch.ones_like(z))
    lines = {"s of W_o": f.s, "s z": f.s * z, "singular values of diag(z) W_o": torch.linalg.svdvals(z[: len(base), None] * base)}
    for colour, (name, values) in zip(COLOURS, lines.items(), strict=False):
        axes.plot(values.numpy(), ".", markersize=3, color=colour, label=name)
    axes.set(xlabel="i", ylabel="singular value")
    axes.legend()
    return png(plot)
