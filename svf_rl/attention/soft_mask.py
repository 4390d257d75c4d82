"""Learned soft masks: every pair's attention weight is multiplied by a learned number, and the row is normalised again.

    a'_ij = a_ij M_ij / sum over l of a_il M_il  =  softmax over j of (s_ij + log M_ij)

so a mask is a term of the scores, and that is how it is computed: any attention kernel that takes a bias runs it, no row can lose
all its mass to a small constant in the denominator, and what is the same for all j cancels. Only the bilinear and the original
form, where no gradient is needed, take the left side: no logarithm for every pair, and an M of at least CLOSED. The forms of
log M, per head h:

bilinear   log sigmoid(t u_i . w_j / sqrt(r) + c) - log sigmoid(c) off the diagonal, 0 on it. u and w are linear in the tokens.
original   log sigmoid(t (P h_i)_p) + log 2, one for all heads: p is the position of j, whatever stands there. To compare with.
           h is the layer's input or, with predictor=attention, that plus what a causal attention of the mask's own says of it.
forget     -gamma times the sum of softplus(f . x_l + b) over the tokens l after j up to i: what lies far back fades.
selective  -gamma times the sum over the tokens l between j and i of relu(s_lj) in the first head, but for j = l and the first
           token: what one token has used, later ones see less of. No parameters but gamma.

u, P and gamma are zero at first, which leaves every row as it was: the untrained model is the base to rounding (eager) or to the
difference of two kernels (sdpa); while u, or P, is zero and no gradient is needed, the base's own attention runs. Remembered beside
the keys are w, f, the keys and values of a predictor's attention and, for selective, the first head's query. The temperature t
rises from 1 to `temperature` over the first `anneal_steps` optimiser steps. Penalty: openness times the mean of M.

Source: gangasingh7058/Learned-Attention at ee83994 (original); Lin et al. 2025 (arXiv 2503.02130) for forget; Leviathan et al.
2024 (arXiv 2410.02703) for selective.
Differs from the source (Learned-Attention):
1. Content on both sides, so that a mask says which tokens and not which slots, for any length, per head.
2. The temperature starts at 1; there it is 20, which leaves two thirds of the gates without a gradient at the start.
3. The original form reads the layer's input, and has an attention of its own only where it is asked for: the frozen layers below
   have one already. From scratch it is as published (svf_rl/studies/soft_mask.py).
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from svf_rl.attention.adapter import AttentionAdapter
from svf_rl.attention.host import Call, Patch, Site, rotate
from svf_rl.base.load import Base
from svf_rl.errors import UserError
from svf_rl.progress import Progress

CLOSED = math.exp(-80)  # the least factor: no weight of a pair is left, and a row of them is still not 0
FADING = -4.0  # softplus(-4) = 0.02: with gamma at 1, half of the weight is gone after 38 tokens


class Form(StrEnum):
    """What log M is made of; see above."""

    bilinear = "bilinear"
    original = "original"
    forget = "forget"
    selective = "selective"


class Predictor(StrEnum):
    """What the original form is a linear map of: the layer's input, or that and what an attention of its own says of it."""

    linear = "linear"
    attention = "attention"


@dataclass(frozen=True)
class SoftMaskConfig:
    """configs/adapter/soft_mask.yaml says what each one does."""

    name: str = "soft_mask"
    form: Form = Form.bilinear
    rank: int = 4
    temperature: float = 5.0
    anneal_steps: int = 50
    openness: float = 0.0
    predictor: Predictor = Predictor.linear

    def __post_init__(self) -> None:
        if self.predictor is Predictor.attention and self.form is not Form.original:
            raise UserError(f"only form=original has a predictor with an attention of its own; found form={self.form}")
        if self.rank < 1 or self.anneal_steps < 1 or not 1 <= self.temperature < math.inf or self.openness < 0:
            raise UserError(
                f"soft masks need rank, anneal_steps and temperature of at least 1, openness of at least 0; found {self}"
            )


class SoftMaskPatch(Patch):
    """log M [B, heads or 1, T, S], added to the scores. Abstract."""

    def __init__(self, config: SoftMaskConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def log_mask(self, call: Call) -> Float[Tensor, "B heads T S"]:
        """Of pairs that the call's mask allows; of others, anything finite."""

    def attend(self, call: Call) -> Float[Tensor, "B T H d"]:
        return call.in_pieces(self._masked)

    def _masked(self, call: Call) -> Float[Tensor, "B T H d"]:
        bias = self.log_mask(call)
        if call.looking:
            call.masks = bias.exp()
        if torch.is_grad_enabled():
            self._measure(call, bias)
        return call.attention(bias=bias)

    def _measure(self, call: Call, bias: Float[Tensor, "B heads T S"]) -> None:
        if self.config.openness:
            mean = call.pair_mean(bias.exp())
            self.penalty = self.config.openness * mean
        else:
            mean = call.pair_mean(bias.detach().exp())
        self.figures["mask_mean"] = mean.detach()


class Annealed(SoftMaskPatch):
    """A mask of logits t z. The temperature is a parameter without a gradient, so that it is kept with the others. Abstract."""

    def __init__(self, config: SoftMaskConfig) -> None:
        super().__init__(config)
        self.temperature = nn.Parameter(torch.ones(()), requires_grad=False)

    @abstractmethod
    def logits(self, call: Call) -> Float[Tensor, "B heads T S"]:
        """t z."""

    @abstractmethod
    def neutral(self) -> Float[Tensor, "heads 1 1"]:
        """sigmoid of t z of an untrained mask."""

    @abstractmethod
    def untrained(self) -> bool:
        """Whether M is 1 everywhere."""

    def attend(self, call: Call) -> Float[Tensor, "B T H d"]:
        if torch.is_grad_enabled() or not self.untrained():
            return super().attend(call)
        if call.looking:
            call.masks = self.log_mask(call).exp()
        return call.attention()

    def _masked(self, call: Call) -> Float[Tensor, "B T H d"]:
        if torch.is_grad_enabled():
            return super()._masked(call)
        mask = self.logits(call).sigmoid_().clamp_(min=CLOSED)  # M times neutral: what is the same for all j cancels
        if call.looking:
            call.masks = mask / self.neutral()
        weights = call.weights().mul_(mask)
        return call.weighted(weights).div_(weights.sum(-1).transpose(1, 2)[..., None])

    def log_mask(self, call: Call) -> Float[Tensor, "B heads T S"]:
        return F.logsigmoid(self.logits(call)) - self.neutral().log()

    @torch.no_grad()
    def constrain(self) -> None:
        self.temperature.add_((self.config.temperature - 1) / self.config.anneal_steps).clamp_(max=self.config.temperature)


class Bilinear(Annealed):
    """u_i . w_j: content on both sides."""

    def __init__(self, site: Site, config: SoftMaskConfig) -> None:
        super().__init__(config)
        self.heads = site.heads
        self.query_map = nn.Parameter(torch.zeros(site.heads * config.rank, site.width))
        self.key_map = nn.Parameter(site.seeded(site.heads * config.rank, site.width) / math.sqrt(site.width))
        self.offset = nn.Parameter(torch.zeros(site.heads))

    def features(self, call: Call) -> Float[Tensor, "B T n"]:
        call.own, remembered = (call.hidden.float() @ torch.cat([self.query_map, self.key_map]).T).chunk(2, -1)
        return remembered

    def untrained(self) -> bool:
        return not bool(self.query_map.any())

    def neutral(self) -> Float[Tensor, "heads 1 1"]:
        return self.offset.sigmoid()[:, None, None]

    def logits(self, call: Call) -> Float[Tensor, "B heads T S"]:
        """t u_i . w_j / sqrt(r) + c; on the diagonal c."""
        assert call.own is not None
        assert call.features is not None
        scale = self.temperature / math.sqrt(self.config.rank)
        query, key = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (call.own * scale, call.features.float()))
        offset = self.offset[:, None, None].expand(*query.shape[:3], 1)
        z: Tensor = (query @ key.transpose(2, 3)).add_(offset)
        return z.scatter_(-1, call.slot[:, None, :, None].expand(offset.shape), offset)


class Original(Annealed):
    """(P h_i)_p: the published mask, keyed by position. ValueError for sequences beyond the base's context."""

    def __init__(self, site: Site, config: SoftMaskConfig, context: int) -> None:
        super().__init__(config)
        self.heads, inner = site.heads, site.heads * site.head_dim
        self.positions = nn.Parameter(torch.zeros(context, site.width))
        if config.predictor is Predictor.attention:
            query, key, value, out = site.seeded(4, inner, site.width) / math.sqrt(site.width)
            self.query, self.key, self.value, self.out = map(nn.Parameter, (query, key, value, out.T.contiguous()))

    def untrained(self) -> bool:
        return not bool(self.positions.any())

    def neutral(self) -> Float[Tensor, "1 1 1"]:
        return self.positions.new_full((1, 1, 1), 0.5)

    def features(self, call: Call) -> Float[Tensor, "B T n"] | None:
        if self.config.predictor is Predictor.linear:
            return None
        key = rotate(self._split(call.hidden.float() @ self.key.T), call.turn)
        return torch.cat([key.transpose(1, 2).flatten(2), call.hidden.float() @ self.value.T], -1)

    def predicted(self, call: Call) -> Float[Tensor, "B T width"]:
        """h: the layer's input, and what the attention of the mask's own says of it."""
        if call.features is None:
            return call.hidden.float()
        query = rotate(self._split(call.hidden.float() @ self.query.T), call.turn)
        key, value = map(self._split, call.features.float().chunk(2, -1))
        said: Tensor = F.scaled_dot_product_attention(query, key, value, call.visible[:, None])
        return call.hidden.float() + said.transpose(1, 2).flatten(2).nan_to_num() @ self.out.T

    def _split(self, x: Float[Tensor, "B T inner"]) -> Float[Tensor, "B heads T d"]:
        split: Tensor = x.unflatten(-1, (self.heads, -1))
        return split.transpose(1, 2)

    def logits(self, call: Call) -> Float[Tensor, "B 1 T S"]:
        """t (P h_i)_p; p is the place of a key among those that the query sees, which mostly is its slot."""
        h, known, keys = self.predicted(call), len(self.positions), call.key.shape[2]
        if keys <= known and bool((call.visible.sum(-1) == call.slot + 1).all()):
            z = h @ self.positions[:keys].T
        else:
            position = (call.visible.int().cumsum(-1) - 1).clamp(min=0)
            if int(position.max()) >= known:
                raise ValueError(f"form=original knows {known} positions, found {int(position.max()) + 1}")
            z = (h @ self.positions.T).gather(-1, position.expand(len(h), -1, -1))
        return (self.temperature * z)[:, None]


class Fading(SoftMaskPatch):
    """A mask of strength gamma, at least 0."""

    def __init__(self, site: Site, config: SoftMaskConfig) -> None:
        super().__init__(config)
        self.gamma = nn.Parameter(torch.zeros(site.heads))

    @torch.no_grad()
    def constrain(self) -> None:
        self.gamma.clamp_(min=0)


class Forget(Fading):
    """Forget gates: a sum over the tokens between key and query, as the difference of two cumulative sums."""

    def __init__(self, site: Site, config: SoftMaskConfig) -> None:
        super().__init__(site, config)
        self.gate = nn.Parameter(site.seeded(site.heads, site.width) / math.sqrt(site.width))
        self.gate_bias = nn.Parameter(torch.full((site.heads,), FADING))

    def features(self, call: Call) -> Float[Tensor, "B T n"]:
        return F.softplus(call.hidden.float() @ self.gate.T + self.gate_bias)

    def log_mask(self, call: Call) -> Float[Tensor, "B H T S"]:
        assert call.features is not None
        total = call.features.float().cumsum(1).transpose(1, 2) * self.gamma[:, None]
        now = total.gather(-1, call.slot[:, None].expand(len(total), total.shape[1], -1))
        return (total[:, :, None] - now[..., None]).clamp_(max=0)


class Selective(Fading):
    """What earlier tokens have used: one head's scores of all earlier queries, remembered, against all keys."""

    def features(self, call: Call) -> Float[Tensor, "B T n"]:
        return call.query[:, 0]

    def log_mask(self, call: Call) -> Float[Tensor, "B H T S"]:
        assert call.features is not None
        used = F.relu(call.features.float() @ call.key[:, 0].float().transpose(1, 2) * call.options["scaling"]).tril(-1)
        own = F.one_hot(call.slot, call.key.shape[2]).bool()
        taken = (call.visible & ~own).float() @ used
        first = call.visible.int().cumsum(-1) == 1
        return -self.gamma[:, None, None] * taken.masked_fill(first, 0.0)[:, None]


def make_soft_mask(base: Base, config: SoftMaskConfig, progress: Progress) -> AttentionAdapter:
    """Soft masks at every layer, not yet installed. BaseError where this base cannot have them."""
    forms: dict[str, Callable[[Site], Patch]] = {
        Form.bilinear: lambda site: Bilinear(site, config),
        Form.original: lambda site: Original(site, config, base.context),
        Form.forget: lambda site: Forget(site, config),
        Form.selective: lambda site: Selective(site, config),
    }
    return AttentionAdapter(base.model, config, forms[config.form])
