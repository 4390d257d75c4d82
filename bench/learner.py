"""One learner step (scores, loss, gradient of what is trained) beside the released code's way and beside LoRA of the same micro-
batch.

All sides take the same 128 episodes; none computes a KL, and their losses must agree, for all of them are the base's. Every
optimiser step changes the trained numbers, so each side's weights are stale when its turn begins.

The released way is written from the source, SakanaAI/self-adaptive-llms utils.py (forward, backward) and
optim_modules/reinforce.py (step_optimization): every adapted weight is rebuilt through diag_embed and copied into the model;
then one episode at a time, all positions through the head, log-softmax over the whole vocabulary, a dense gradient of every
weight of the model; then every adapted weight is rebuilt once more inside a graph, through which its dense gradient goes. Here
in float32 and without tokenising again, which is kinder to it than bfloat16 on a CPU. The second row rebuilds at every episode,
inside the graph, as a summary of the method would have it; the released code does not.

LoRA is that of `peft`, rank 16 on the same matrices. Memory is what the step makes at most, and what is kept between steps
(adapter, factors, merged weights); the bound for it is LoRA's, and the factors.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import functional_call

from bench._measure import MIB, Row, alive, installed, peak, peer, row, side_by_side
from svf_rl.adapter import Adapter
from svf_rl.adapters import ADAPTERS, make_adapter
from svf_rl.base.load import Base, BaseConfig, load_base
from svf_rl.learn.scores import may_share, micro_batches, own_hidden, token_scores
from svf_rl.learn.trainer import AlgoConfig
from svf_rl.rollout.episodes import EnvConfig, make_env, play
from svf_rl.rollout.sampler import Sampling
from svf_rl.svf.factorize import factorize, matrix
from svf_rl.types import Episode, Factors

ROUNDS, GROUP, QUESTIONS = 5, 8, 16
BUDGET = AlgoConfig().micro_batch_tokens
Step = Callable[[], Tensor]


def run() -> Iterator[Row]:
    base = load_base(BaseConfig())
    episodes = some_episodes(base)
    factors = factorize(base, "attention+mlp")
    ours, standing = ours_side(base, "svf", episodes)
    once, each = Released(factors, episodes), (lambda: released_per_episode(load, factors, episodes))
    load = once.base
    torch.testing.assert_close(ours(), once(), rtol=1e-3, atol=1e-2)
    yield row("learner step, beside the released code's way", *side_by_side(ours, once, ROUNDS, "released"), "s", "≥ 10")
    yield row("the same, if it rebuilt at every episode", *side_by_side(ours, each, 2, "rebuilding each"), "s")
    peer("peft")
    theirs, other = ours_side(base, "lora", episodes)
    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-2)
    yield row("learner step, beside LoRA rank 16 (peft)", *side_by_side(ours, theirs, ROUNDS, "LoRA"), "s", "≤ 1.3")
    size = sum(t.nbytes for f in factors.values() for t in f) / MIB
    bound = peak(theirs) + other + size
    yield row("its peak memory, beside LoRA's and the factors", peak(ours) + standing, bound, "MiB", "≤ 1", factors=size)


def some_episodes(base: Base) -> list[Episode]:
    """GROUP sampled answers to each of QUESTIONS questions."""
    indices = [i // GROUP for i in range(GROUP * QUESTIONS)]
    found = play(base, make_env(EnvConfig()), "train", indices, Sampling(64), range(len(indices)))
    return [e for e in found if e is not None]


def ours_side(base: Base, name: str, episodes: list[Episode]) -> tuple[Step, float]:
    """A step with this adapter, and the MiB that the adapter keeps between steps."""
    before = alive()
    adapter = make_adapter(base, ADAPTERS[name].settings())

    def step() -> Tensor:
        for parameter in adapter.parameters().values():  # an optimiser has been here
            parameter.detach().mul_(1.0)
        with installed(adapter):
            loss = gradient(base, adapter, episodes)
        for parameter in adapter.parameters().values():
            parameter.grad = None
        return loss

    step()
    return step, alive() - before


def gradient(base: Base, adapter: Adapter, episodes: list[Episode]) -> Tensor:
    """Gradients of -log p of every own token, in micro-batches as `svf_rl.learn.trainer` makes them; the loss."""
    total = torch.zeros((), device=base.device)
    share = may_share(base)
    for batch in micro_batches(episodes, BUDGET, share):
        hidden, tokens = own_hidden(base, [episodes[i] for i in batch], share)
        loss = -token_scores(hidden, tokens, base.logits, vocabulary=base.model.config.vocab_size, temperature=1.0).logp.sum()
        loss.backward()
        total += loss.detach()
    return total


class Released:
    """A step in the released code's way, on a base of its own whose weights all take a gradient."""

    def __init__(self, factors: dict[str, Factors], episodes: list[Episode]) -> None:
        self.base, self.factors, self.episodes = load_base(BaseConfig()), factors, episodes
        self.base.model.requires_grad_(True)
        self.z = {name: torch.ones_like(f.s, requires_grad=True) for name, f in factors.items()}

    def rebuilt(self, name: str) -> Tensor:
        (u, s, vt), z = self.factors[name], self.z[name]
        return u @ torch.diag_embed(s * z) @ vt * (s.sum() / (s * z).sum())

    def weight(self, name: str) -> Tensor:
        return matrix(self.base.model.get_submodule(name))

    def __call__(self) -> Tensor:
        self.base.model.zero_grad()
        with torch.no_grad():
            for name in self.z:
                self.weight(name).copy_(self.rebuilt(name))
        total = sum(self.episode(e) for e in self.episodes)
        for name, z in self.z.items():
            z.grad = None
            self.rebuilt(name).backward(self.weight(name).grad)
        return torch.as_tensor(total)

    def episode(self, episode: Episode) -> Tensor:
        loss = nll(self.base.model(torch.tensor([episode.ids], device=self.base.device), use_cache=False).logits, episode)
        loss.backward()
        return loss.detach()


def released_per_episode(base: Base, factors: dict[str, Factors], episodes: list[Episode]) -> None:
    """Every adapted weight rebuilt at every episode, inside the graph."""
    z = {name: torch.ones_like(f.s, requires_grad=True) for name, f in factors.items()}
    plain = dict(base.model.named_parameters())
    for episode in episodes:
        rebuilt = {f"{name}.weight": f.U @ torch.diag_embed(f.s * z[name]) @ f.Vt for name, f in factors.items()}
        ids = torch.tensor([episode.ids], device=base.device)
        nll(functional_call(base.model, {**plain, **rebuilt}, (ids,), {"use_cache": False}).logits, episode).backward()


def nll(logits: Tensor, episode: Episode) -> Tensor:
    """-log p of the episode's own tokens, from the scores of all positions, [1, time, vocabulary]."""
    first = episode.own.index(True)
    own = torch.tensor(episode.ids[first:], device=logits.device)
    return -logits[0, first - 1 : -1].float().log_softmax(-1).gather(1, own[:, None]).sum()
