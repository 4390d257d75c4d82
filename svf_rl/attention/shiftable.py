"""Shiftable attention: specialists beside the base's attention, and a gate that says how much of each a token takes.

    Y = B + sum over k of  g_k (S_k - B),      g = softmax(W relu(pool(V x)) + b + log prior) over the base and the specialists

S_k is the base's attention with low-rank changes of its queries and of its output projection, both zero at first, so the
untrained model is the base bit for bit under any gate. Keys and values are the base's: a specialist costs one more
reading of the cache and no space in it. keys_values=own gives it low-rank changes of them too, which are remembered beside the
keys: in the cache each specialist then takes as much again as the base. pool is the token itself, or a running mean over what the
token sees; of the tokens' V x beside the keys, so that it needs no state of its own. With top_k, each token reads with its top_k
specialists only: as many readings as that, and with keys of their own as many as there are specialists that any token reads with.

Penalty, of means over tokens that are no padding:   entropy H(g) - balance H(mean g) + sparsity (1 - g_base), and where the
domain of the text is given (`labelled`), the cross-entropy of the gate to it.

Source: computermaster0101/shiftable-attention-poc, the README and the paper; Zhang et al. 2022, mixture of attention heads
(arXiv 2210.05144), for specialists that share keys and values.
Differs from the source:
1. Gates are made token by token from the past; there the mean over the whole sequence tells a token what follows it.
2. Specialists start as the base, not at random, and gradients pass through the base's branch.
3. Base and specialists share one softmax, so that a specialist can be shut off; the released code normalises sigmoids.
4. The regularisers that its README names exist, and gates of exactly 0 leave them finite.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from svf_rl.attention.adapter import AttentionAdapter, setting
from svf_rl.attention.host import Call, Patch, Site, rotate
from svf_rl.base.load import Base
from svf_rl.errors import BaseError, UserError, check_at_least
from svf_rl.progress import Progress

NEW = -6.0  # the gate's bias of an added specialist: it starts with a weight of about 0.002
FORCED = 0.95  # the gate of the labelled specialist while it warms up


class Pool(StrEnum):
    """What the gate of a token reads: the token; the mean of all it sees; of the first PROMPT of those; or of the whole
    sequence, future included, which a causal model cannot have."""

    token = "token"
    causal_mean = "causal_mean"
    prompt = "prompt"
    sequence = "sequence"


class KeysValues(StrEnum):
    """What a specialist reads: the base's keys and values, or low-rank changes of them that are its own."""

    shared = "shared"
    own = "own"


@dataclass(frozen=True)
class ShiftableConfig:
    """configs/adapter/shiftable.yaml says what each one does."""

    name: str = "shiftable"
    specialists: int = 1
    rank: int = 8
    keys_values: KeysValues = KeysValues.shared
    pool: Pool = Pool.token
    prompt_tokens: int = 32
    gate_width: int = 16
    top_k: int | None = None
    entropy: float = 0.0
    balance: float = 0.0
    sparsity: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(1, self, "specialists rank prompt_tokens gate_width", "adapter.")
        if self.top_k is not None and not 1 <= self.top_k <= self.specialists:
            raise UserError(f"adapter.top_k must be between 1 and adapter.specialists={self.specialists}, not {self.top_k}")


class Specialist(nn.Module):
    """Low-rank changes of queries and output projection, of keys and values if it has its own; and its row of the gate."""

    def __init__(self, site: Site, config: ShiftableConfig, index: int) -> None:
        super().__init__()
        inner, more = site.heads * site.head_dim, 2 * site.width * (config.keys_values == KeysValues.own)
        draw = site.seeded(1 + index, config.rank, site.width + inner + more)[-1]  # its own, whatever the others are
        query, out, key, value = draw.tensor_split([site.width, site.width + inner, site.width + inner + more // 2], -1)
        self.query_down = nn.Parameter(query / math.sqrt(site.width))
        self.query_up = nn.Parameter(torch.zeros(inner, config.rank))
        self.out_down = nn.Parameter(out / math.sqrt(inner))
        self.out_up = nn.Parameter(torch.zeros(site.width, config.rank))
        if more:
            self.key_down, self.value_down = (nn.Parameter(down / math.sqrt(site.width)) for down in (key, value))
            self.key_up, self.value_up = (nn.Parameter(torch.zeros(inner // site.groups, config.rank)) for _ in range(2))
        self.gate = nn.Parameter(torch.zeros(config.gate_width))
        self.gate_bias = nn.Parameter(torch.zeros(()))


class ShiftablePatch(Patch):
    """The specialists and the gate of one attention module.

    prior [rows or 1, 1 + K]: added to the gate's scores.  label: the specialist that the text belongs to (0 is the base), or None.
    """

    def __init__(self, site: Site, config: ShiftableConfig) -> None:
        super().__init__()
        self.config = config
        self.gate_in = nn.Parameter(site.seeded(config.gate_width, site.width) / math.sqrt(site.width))
        self.specialists = nn.ModuleList(Specialist(site, config, k) for k in range(config.specialists))
        self.prior: Tensor | None = None
        self.label: int | None = None
        self.forced, self.weight = False, 1.0

    def features(self, call: Call) -> Float[Tensor, "B T n"] | None:
        remembered = [] if self.config.pool == Pool.token else [call.hidden.float() @ self.gate_in.T]
        if self.config.keys_values == KeysValues.own:
            remembered += [self._changes(call, specialist) for specialist in self.specialists]
        return torch.cat(remembered, -1) if remembered else None

    def attend(self, call: Call) -> Float[Tensor, "B T H d"]:
        scores = gate_scores(self._pooled(call), self.rows("gate"), self.rows("gate_bias"), self.prior)
        chosen = self._chosen(scores)
        turns = self._turns(scores, chosen)
        call.gates = gates = self._gates(scores, chosen)
        base = heads = call.attention()
        inner = call.hidden.float() @ self.rows("query_down").flatten(0, 1).T
        said: list[Tensor] = []
        for turn in turns:
            query = self._through(inner, turn, "query_up").unflatten(-1, (base.shape[2], -1)).transpose(1, 2)
            branch = call.attention(call.query + rotate(query, call.turn).to(base.dtype), *self._keys_values(call, turn))
            amount = gates[..., 1:].gather(-1, turn)
            heads = torch.addcmul(heads, amount[..., None].to(base.dtype), branch - base)
            low = branch.flatten(2).float() @ self.rows("out_down").flatten(0, 1).T
            said.append(amount * self._through(low, turn, "out_up"))
        call.after = sum(said[1:], said[0])
        if torch.is_grad_enabled():
            self._measure(call, gates, scores)
        return heads

    def rows(self, name: str) -> Float[Tensor, "K ..."]:
        """One tensor of every specialist."""
        return torch.stack([getattr(specialist, name) for specialist in self.specialists])

    def _pooled(self, call: Call) -> Float[Tensor, "B T n"]:
        if self.config.pool == Pool.token:
            return call.hidden.float() @ self.gate_in.T
        assert call.features is not None
        seen, inner = call.visible.float(), call.features[..., : self.config.gate_width].float()
        if self.config.pool == Pool.prompt:
            seen = seen * (seen.cumsum(-1) <= self.config.prompt_tokens)
        return (seen @ inner) / seen.sum(-1, keepdim=True).clamp(min=1)

    def _chosen(self, scores: Float[Tensor, "B T n"]) -> Int[Tensor, "B T m"] | None:
        """Each token's top_k specialists; None for all of them."""
        k, m = self.config.specialists, self.config.top_k
        return None if m is None or m == k or self.forced else scores[..., 1:].topk(m).indices

    def _turns(self, scores: Float[Tensor, "B T n"], chosen: Int[Tensor, "B T m"] | None) -> list[Int[Tensor, "B T 1"]]:
        """Which specialist each token reads with, turn by turn: its own; or one for all tokens, where keys differ."""
        if chosen is not None and self.config.keys_values == KeysValues.shared:
            return list(chosen.split(1, -1))
        wanted = range(self.config.specialists) if chosen is None else chosen.unique().tolist()
        return [torch.full_like(scores[..., :1], i, dtype=torch.long) for i in wanted]

    def _gates(self, scores: Float[Tensor, "B T n"], chosen: Int[Tensor, "B T m"] | None) -> Float[Tensor, "B T n"]:
        """softmax over the base and the chosen specialists; where the text is labelled, what it says."""
        if self.forced:
            assert self.label is not None
            forced = torch.full_like(scores, (1 - FORCED) / self.config.specialists)
            forced[..., self.label] = FORCED
            return forced
        if chosen is not None:
            idle = torch.ones_like(scores[..., 1:]).scatter(-1, chosen, 0.0)
            scores = scores.masked_fill(nn.functional.pad(idle, (1, 0)) == 1, -torch.inf)
        return scores.softmax(-1)

    def _keys_values(self, call: Call, turn: Int[Tensor, "B T 1"]) -> tuple[Tensor, ...]:
        """Keys and values [B, H / groups, S, d] of the specialist whose turn it is; none where they are the base's."""
        if self.config.keys_values == KeysValues.shared:
            return ()
        assert call.features is not None
        before = 0 if self.config.pool == Pool.token else self.config.gate_width
        heads, size = call.key.shape[1], 2 * call.key.shape[1] * call.key.shape[-1]
        own = call.features[..., before:].split(size, -1)[int(turn.flatten()[0])]
        key, value = own.unflatten(-1, (2 * heads, -1)).transpose(1, 2).chunk(2, 1)
        return call.key + key, call.value + value

    def _changes(self, call: Call, own: nn.Module) -> Float[Tensor, "B T n"]:
        """What a specialist adds to keys, turned by their positions, and then to values."""
        key, value = (
            call.hidden.float() @ own.get_parameter(f"{side}_down").T @ own.get_parameter(f"{side}_up").T
            for side in ("key", "value")
        )
        turned = rotate(key.unflatten(-1, (call.key.shape[1], -1)).transpose(1, 2), call.turn)
        return torch.cat([turned.transpose(1, 2).flatten(2), value], -1)

    def _through(self, inner: Float[Tensor, "B T inner"], turn: Int[Tensor, "B T 1"], up: str) -> Float[Tensor, "B T out"]:
        """The low-rank product of each token's own specialist: the inner values of the others are set to zero."""
        if self.config.specialists == 1:
            return inner @ self.rows(up)[0].T
        own: Tensor = nn.functional.one_hot(turn[..., 0], self.config.specialists).to(inner.dtype)
        kept: Tensor = inner.unflatten(-1, (self.config.specialists, -1)) * own[..., None]
        return kept.flatten(-2) @ self.rows(up).transpose(1, 2).flatten(0, 1)

    def _measure(self, call: Call, gates: Tensor, scores: Tensor) -> None:
        c, mean = self.config, call.mean(gates)
        self.figures["gate_base"] = mean[0].detach()
        self.figures["gate_entropy"] = call.mean(entropy(gates)).detach()
        penalty = c.sparsity * (1 - mean[0]) + c.entropy * call.mean(entropy(gates)) - c.balance * entropy(mean)
        if self.label is not None:
            penalty = penalty - self.weight * call.mean(scores.log_softmax(-1)[..., self.label])
        self.penalty = penalty if c.sparsity or c.entropy or c.balance or self.label is not None else None


def gate_scores(
    pooled: Float[Tensor, "... width"],
    rows: Float[Tensor, "K width"],
    bias: Float[Tensor, " K"],
    prior: Float[Tensor, "rows n"] | None,
) -> Float[Tensor, "... n"]:
    """relu(pooled) rows + bias, with 0 for the base in front, plus the logarithm of a prior."""
    scores = nn.functional.pad(pooled.relu() @ rows.T + bias, (1, 0))
    return scores if prior is None else scores + prior[:, None]


def entropy(gates: Float[Tensor, "... n"]) -> Float[Tensor, "..."]:
    """In nats, over the last dimension. A gate of 0 counts 0, and its gradient is finite."""
    return -(gates * gates.clamp(min=1e-9).log()).sum(-1)


def make_shiftable(base: Base, config: ShiftableConfig, progress: Progress) -> AttentionAdapter:
    """Shiftable attention at every layer, not yet installed. BaseError for a pool that a causal model cannot have."""
    if config.pool == Pool.sequence:
        raise BaseError("pool=sequence would tell a token what follows it; a causal base takes token, causal_mean or prompt")
    text = base.model.config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"]
    if config.pool == Pool.prompt and getattr(text, "sliding_window", None) and "sliding_attention" in kinds:
        raise BaseError("pool=prompt needs tokens that see the prompt, and this base has a sliding window; use pool=causal_mean")
    return AttentionAdapter(base.model, config, lambda site: ShiftablePatch(site, config))


@contextmanager
def labelled(adapter: AttentionAdapter, label: int, forced: bool = True, weight: float = 1.0) -> Iterator[None]:
    """Within it, the text belongs to one branch (0 is the base, k the k-th specialist), and the penalty teaches the gate to say so.

    forced: that branch's gate is 0.95, whatever the gate says. For the first steps: equal specialists have equal gradients.
    weight: of the cross-entropy, so that a domain that comes up less often may count as much.
    """
    with setting(adapter, "label", label), setting(adapter, "forced", forced), setting(adapter, "weight", weight):
        yield


@contextmanager
def prior(adapter: AttentionAdapter, log_prior: Float[Tensor, "rows n"]) -> Iterator[None]:
    """Within it, every gate's scores have this term, of one row or of every row of the batch (see geometry.py)."""
    with setting(adapter, "prior", log_prior):
        yield


def add_specialist(base: Base, adapter: AttentionAdapter) -> AttentionAdapter:
    """A new adapter with one specialist more, nearly shut off, and the only one that trains; the others are kept as they are."""
    config = replace(adapter.config, specialists=adapter.config.specialists + 1)
    grown = AttentionAdapter(base.model, config, lambda site: ShiftablePatch(site, config))
    own, old = grown.state(), adapter.state()
    grown.load_state({name: old.get(name, torch.full_like(t, NEW) if name.endswith("gate_bias") else t) for name, t in own.items()})
    freeze_first(grown, adapter.config.specialists)
    return grown


def freeze_first(adapter: AttentionAdapter, older: int) -> None:
    """From now on only the specialists after the first `older` train, and their rows of the gate."""
    for patch in adapter.patches.values():
        for parameter in patch.parameters():
            parameter.requires_grad_(False)
        for specialist in list(patch.get_submodule("specialists").children())[older:]:
            specialist.requires_grad_(True)


def remove_specialist(base: Base, adapter: AttentionAdapter, index: int) -> AttentionAdapter:
    """A new adapter without the specialist of this index, from 0; the gates of the others grow in proportion."""
    left, top_k = adapter.config.specialists - 1, adapter.config.top_k
    config = replace(adapter.config, specialists=left, top_k=top_k and min(top_k, left))
    fewer, old = AttentionAdapter(base.model, config, lambda site: ShiftablePatch(site, config)), adapter.state()
    fewer.load_state({name: old[_renumbered(name, index)] for name in fewer.state()})
    return fewer


def _renumbered(name: str, removed: int) -> str:
    path, middle, rest = name.rpartition(".specialists.")
    number, _, tensor = rest.partition(".")
    return f"{path}{middle}{int(number) + (int(number) >= removed)}.{tensor}" if middle else name
