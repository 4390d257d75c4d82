"""Gated attention: every head's output is gated by its token, and every head's pairs of tokens by both of them.

    heads_ih = o_ih  sum over j of  G_ijh A_ijh v_jh        o = 2 sigmoid(x_i w_h + b_h),  G = clamp(a_ih . c_jh / r, 0, 1)

A is the base's softmax; pairs are gated after it and not renormalised, so a head may stay silent. a and c are 1 + a linear map of
the token, of r values each; all maps start at zero, so o = G = 1 and the untrained model is the base bit for bit: with a gradient
the pair term is computed as A v + ((G - 1) A) v; without, as (G A) v once any map is not zero. c is remembered beside the keys.

output=hard: o = clamp(1.2 sigmoid((x_i w_h + b_h + noise_h) / s) - 0.1, 0, 1). Without a gradient there is no noise and s = 1: the
untrained model is the base bit for bit. With one, and in the answers that REINFORCE learns from (`exploring`), s = 2/3 and the
noise is the logit of a uniform number, one for each head, layer and optimiser step, the same for all tokens: padding and the cut
into micro-batches change nothing, and answers are scored by the policy that wrote them. The untrained model is then not the base:
a head is at exactly 1 in 80 % of the steps, at 0 in 1 %, else between. The number of steps done is kept with the parameters and
the noise is a function of it, so a training that goes on draws what it would have drawn.

The penalty is that of the contribution of each head to each token, through pairs j:

    weight * mean over tokens i of  sum over j (sum over h  |o_ih G_ijh A_ijh v_jh W_O,h|^p)^(1/p),   p = 0.6

Source: cmathw/gated-attn (LessWrong, April 2024) for pair gates; Qiu et al. 2025 (arXiv 2505.06708) for output gates; Louizos et
al. 2018 (arXiv 1712.01312) for the hard concrete distribution.
Differs from the source (gated-attn):
1. Contributions are penalised, not gates: there a gate of 0.01 on values of size 50 is cheap, and its saved models use that.
2. Only pairs that the mask allows are counted; there half of all pairs are in the future.
3. Outside [0, 1] a tenth of the gradient passes, so that a head at 0 can come back; there it is dead.
4. r is free; there it is 1. Here the default is 0, output gates alone: a gate for every pair costs as much as the attention itself.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor, nn

from svf_rl.adapter import Adapter
from svf_rl.attention.adapter import AttentionAdapter, setting
from svf_rl.attention.host import Call, Patch, Site
from svf_rl.base.load import Base
from svf_rl.errors import BaseError
from svf_rl.progress import Progress

LEAK, POWER, TINY = 0.1, 0.6, 1e-6
LOW, HIGH, SHARPNESS = -0.1, 1.1, 2 / 3  # the stretched interval and temperature of the hard concrete distribution
OPEN = 3.0  # a hard gate's first logit: 1.1 sigmoid(3) - 0.1 sigmoid(-3) > 1, so it starts at exactly 1


class Output(StrEnum):
    """What gates a head's output: nothing; 2 sigmoid, between 0 and 2; a hard concrete gate, which can be 0 and 1 exactly."""

    none = "none"
    sigmoid = "sigmoid"
    hard = "hard"


@dataclass(frozen=True)
class GatedConfig:
    """rank: values per token and head of the pair gates, 0 for none. penalty: weight of contributions, and of open hard gates."""

    name: str = "gated"
    output: Output = Output.sigmoid
    rank: int = 0
    penalty: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 0 or self.penalty < 0 or (self.rank == 0 and self.output == Output.none):
            raise BaseError(f"gated attention needs an output gate or a rank above 0, and no negative number; found {self}")


class GatedPatch(Patch):
    """The gates of one attention module."""

    def __init__(self, site: Site, config: GatedConfig) -> None:
        super().__init__()
        self.config, self.heads = config, site.heads
        self._out = site.out.unflatten(1, (site.heads, -1)).float()
        self.layer = site.layer
        self.exploring = False
        if config.output == Output.hard:
            self.steps = nn.Parameter(torch.zeros(()), requires_grad=False)
        if config.output != Output.none:
            self.output = nn.Parameter(torch.zeros(site.heads, site.width))
            self.output_bias = nn.Parameter(torch.full((site.heads,), OPEN if config.output == Output.hard else 0.0))
        if config.rank:
            self.query_gate = nn.Parameter(torch.zeros(site.heads * config.rank, site.width))
            self.key_gate = nn.Parameter(torch.zeros(site.heads * config.rank, site.width))

    def features(self, call: Call) -> Float[Tensor, "B T n"] | None:
        if not self.config.rank:
            return None
        call.own, remembered = (call.hidden.float() @ torch.cat([self.query_gate, self.key_gate]).T).chunk(2, -1)
        return remembered

    def attend(self, call: Call) -> Float[Tensor, "B T H d"]:
        weights = None
        if torch.is_grad_enabled() and (self.config.rank or self.config.penalty):
            weights = call.weights()
        heads = self._paired(call, weights) if self.config.rank else call.attention()
        if self.config.output != Output.none:
            call.gates = self.output_gates(call.hidden)
            heads = heads * call.gates[..., None].to(heads.dtype)
        if torch.is_grad_enabled():
            self._measure(call, weights, call.masks)
        return heads

    def _paired(self, call: Call, weights: Float[Tensor, "B H T S"] | None) -> Float[Tensor, "B T H d"]:
        """(G A) v, and A v of the base's own kernel while G is 1. weights: A, with a gradient; see above."""
        if weights is None and (bool(self.query_gate.any()) or bool(self.key_gate.any())):
            return call.in_pieces(self._product)
        heads = call.attention()
        if weights is None and not call.looking:
            return heads
        call.masks = self.pair_gates(call)
        return heads if weights is None else heads + call.weighted((call.masks - 1) * weights)

    def _product(self, call: Call) -> Float[Tensor, "B T H d"]:
        gates = self.pair_gates(call)
        if call.looking:
            call.masks = gates
        return call.weighted(call.weights().mul_(gates))

    def pair_gates(self, call: Call) -> Float[Tensor, "B H T S"]:
        """G, in [0, 1]."""
        assert call.own is not None
        assert call.features is not None
        query, key = (1 + side.unflatten(-1, (self.heads, -1)).transpose(1, 2) for side in (call.own, call.features.float()))
        return leaky_clamp((query / self.config.rank) @ key.transpose(2, 3))

    def output_gates(self, hidden: Float[Tensor, "B T width"]) -> Float[Tensor, "B T H"]:
        """o, in [0, 2]; in [0, 1] where it is hard, and then drawn where there is a gradient, or while exploring."""
        logits = hidden.float() @ self.output.T + self.output_bias
        if self.config.output == Output.hard:
            drawn = self.exploring or torch.is_grad_enabled()
            return hard_concrete(logits, self.uniform() if drawn else None)
        return 2 * logits.sigmoid()

    def uniform(self) -> Float[Tensor, " H"]:
        """Uniform numbers of this layer and optimiser step."""
        generator = torch.Generator().manual_seed(1_000_003 * self.layer + int(self.steps))
        return torch.rand(self.heads, generator=generator).to(self.steps.device)

    @torch.no_grad()
    def constrain(self) -> None:
        if self.config.output == Output.hard:
            self.steps.add_(1)

    def _measure(self, call: Call, weights: Tensor | None, pairs: Tensor | None) -> None:
        if call.gates is not None:
            self.figures["gate_mean"] = call.mean(call.gates).mean().detach()
        if pairs is not None:
            self.figures["mask_mean"] = call.pair_mean(pairs).detach()
        if self.config.penalty and weights is not None:
            contribution = weights if pairs is None else weights * pairs
            contribution = contribution * self._strength(call)[:, :, None]
            if call.gates is not None:
                contribution = contribution * call.gates.transpose(1, 2)[..., None]
            self.penalty = self.config.penalty * self._total(call, contribution)

    def _total(self, call: Call, contribution: Float[Tensor, "B H T S"]) -> Float[Tensor, ""]:
        total = (((contribution + TINY) ** POWER).sum(1) ** (1 / POWER) * call.visible).sum(-1)
        if self.config.output == Output.hard:
            total = total + open_probability(call.hidden.float() @ self.output.T + self.output_bias).sum(-1)
        return call.mean(total)

    def _strength(self, call: Call) -> Float[Tensor, "B H S"]:
        """|v_jh W_O,h|: how much a head can say through key j, by the Gram matrices of the output projection."""
        gram = torch.einsum("whd,whe->hde", self._out, self._out)
        value = call.per_head(call.value).float()
        return (torch.einsum("bhsd,hde,bhse->bhs", value, gram, value).clamp(min=0) + TINY**2).sqrt()


def leaky_clamp(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x in [0, 1], exactly; outside it a tenth of the gradient passes."""
    return x.clamp(0, 1) + LEAK * (x - x.detach()) if x.requires_grad else x.clamp(0, 1)


def hard_concrete(logits: Float[Tensor, "..."], uniform: Float[Tensor, "..."] | None = None) -> Float[Tensor, "..."]:
    """A gate in [0, 1] that is exactly 0 or 1 with a positive probability; its mode where no uniform numbers are given."""
    noise = 0.0 if uniform is None else torch.logit(uniform)
    scale = 1.0 if uniform is None else SHARPNESS
    return leaky_clamp(((logits + noise) / scale).sigmoid() * (HIGH - LOW) + LOW)


def open_probability(logits: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The probability that a hard concrete gate is not 0."""
    return (logits - SHARPNESS * math.log(-LOW / HIGH)).sigmoid()


def make_gated(base: Base, config: GatedConfig, progress: Progress) -> AttentionAdapter:
    """Gated attention at every layer, not yet installed. BaseError where this base cannot have it."""
    return AttentionAdapter(base.model, config, lambda site: GatedPatch(site, config))


def exploring(adapter: Adapter) -> AbstractContextManager[None]:
    """Within it, hard gates are drawn as they are where there is a gradient; anything else is what it is."""
    if isinstance(adapter, AttentionAdapter) and adapter.name == "gated":
        return setting(adapter, "exploring", True)
    return nullcontext()
