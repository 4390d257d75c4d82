"""Scores of own tokens against the naive form: one forward per episode, full log-softmax, autograd through everything."""

import dataclasses
import random
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from svf_rl.base.load import Base
from svf_rl.learn import scores
from svf_rl.learn.scores import ROW, indices_by_row, may_share, micro_batches, own_hidden, row_length, token_scores
from svf_rl.rollout.episodes import play
from svf_rl.rollout.sampler import Sampling
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.svf.factorize import factorize
from svf_rl.types import Episode

SHAPES = ((4, 6), (1, 1), (9, 2), (2, 12), (7, 5))  # tokens of prompt and answer
VOCABULARY = 300


def random_episodes(shapes: Sequence[tuple[int, int]] = SHAPES, seed: int = 0) -> list[Episode]:
    rng = random.Random(seed)
    made = []
    for prompt, answer in shapes:
        ids = [rng.randrange(256) for _ in range(prompt + answer)]
        own = [False] * prompt + [True] * answer
        made.append(Episode(ids, own, [0.0] * answer, 1.0, "", "length", "", ""))
    return made


@contextmanager
def adapted(base: Base, seed: int = 1) -> Iterator[SVFAdapter]:
    """The base under an adapter that moved."""
    adapter = SVFAdapter(base.model, factorize(base, "attention+mlp"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for z in adapter.parameters().values():
            z.uniform_(0.7, 1.4, generator=generator)
    adapter.install()
    try:
        yield adapter
    finally:
        adapter.uninstall()


def naive(base: Base, episode: Episode, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of the whole vocabulary at each own token."""
    logits = base.model(torch.tensor([episode.ids]), use_cache=False).logits[0, :-1]
    return torch.log_softmax(logits.float() / temperature, -1)[torch.tensor(episode.own[1:])]


def own_tokens(episode: Episode) -> Tensor:
    return torch.tensor([token for token, own in zip(episode.ids, episode.own, strict=True) if own])


def gradients(adapter: SVFAdapter, value: Tensor) -> dict[str, Tensor]:
    return dict(zip(adapter.raw, torch.autograd.grad(value, list(adapter.raw.values())), strict=True))


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_chunks_equal_the_full_table(size: int, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities, entropy and exact KL, with their gradients to the hidden states."""
    monkeypatch.setattr(scores, "CHUNK_ELEMENTS", size * VOCABULARY)
    generator = torch.Generator().manual_seed(0)
    width = tiny_base.model.config.hidden_size
    hidden, reference = torch.randn(2, 17, width, generator=generator)
    tokens = torch.randint(VOCABULARY, (17,), generator=generator)
    weights = torch.randn(2, 17, generator=generator)
    hidden.requires_grad_()
    found = token_scores(hidden, tokens, tiny_base.logits, 0.7, reference, VOCABULARY)
    (found_gradient,) = torch.autograd.grad((weights[0] * found.logp + weights[1] * found.kl).sum(), hidden)

    policy = torch.distributions.Categorical(logits=tiny_base.logits(hidden) / 0.7)
    base = torch.distributions.Categorical(logits=tiny_base.logits(reference) / 0.7)
    logp, kl = policy.log_prob(tokens), torch.distributions.kl_divergence(policy, base)
    (gradient,) = torch.autograd.grad((weights[0] * logp + weights[1] * kl).sum(), hidden)
    torch.testing.assert_close(found.logp, logp, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.kl, kl, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.entropy, policy.entropy(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_gradient, gradient, atol=1e-5, rtol=1e-4)
    assert not found.entropy.requires_grad


def test_without_a_reference_the_kl_is_zero(tiny_base: Base) -> None:
    hidden = torch.randn(4, tiny_base.model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    assert token_scores(hidden, torch.arange(4), tiny_base.logits, 1.0, None, VOCABULARY).kl.tolist() == [0.0] * 4


def test_scores_of_padded_episodes_are_those_of_each_alone(base: Base) -> None:
    episodes = random_episodes()
    with adapted(base), torch.no_grad():
        hidden, tokens = own_hidden(base, episodes)
        found = token_scores(hidden, tokens, base.logits, 1.0, None, VOCABULARY).logp.split([sum(e.own) for e in episodes])
        for episode, logp in zip(episodes, found, strict=True):
            expected = naive(base, episode).gather(1, own_tokens(episode)[:, None])[:, 0]
            torch.testing.assert_close(logp, expected, atol=1e-4, rtol=0)


def test_what_was_recorded_when_sampling_is_what_is_scored(base: Base, toy_env: Callable[..., Any]) -> None:
    with adapted(base), torch.no_grad():
        episodes = [e for e in play(base, toy_env("Letter"), "train", range(12), Sampling(20, 1.3, 5), range(12)) if e]
        hidden, tokens = own_hidden(base, episodes)
        logp = token_scores(hidden, tokens, base.logits, 1.3, None, VOCABULARY).logp
    recorded = torch.tensor([x for e in episodes for x in e.logprobs])
    assert tokens.tolist() == [t for e in episodes for t in own_tokens(e).tolist()]
    torch.testing.assert_close(logp, recorded, atol=1e-4, rtol=0)


@pytest.mark.parametrize("budget", [1, 20, 39, 10_000])
def test_the_gradient_of_z_does_not_depend_on_the_micro_batches(base: Base, budget: int) -> None:
    """Against the naive gradient: episode by episode, full table, dense autograd."""
    episodes = random_episodes()
    weight = torch.randn(len(episodes), generator=torch.Generator().manual_seed(5))
    with adapted(base) as adapter:
        whole = [w * naive(base, e).gather(1, own_tokens(e)[:, None]).sum() for e, w in zip(episodes, weight, strict=True)]
        expected = gradients(adapter, torch.stack(whole).sum())
        found = {name: torch.zeros_like(z) for name, z in adapter.raw.items()}
        for batch in micro_batches(episodes, budget):
            chosen = [episodes[i] for i in batch]
            hidden, tokens = own_hidden(base, chosen)
            logp = token_scores(hidden, tokens, base.logits, 1.0, None, VOCABULARY).logp
            per_token = weight[batch].repeat_interleave(torch.tensor([sum(e.own) for e in chosen]))
            for name, g in gradients(adapter, (per_token * logp).sum()).items():
                found[name] += g
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=2e-4, rtol=2e-4)


def groups(
    shapes: Sequence[tuple[int, Sequence[int]]] = ((9, (2, 7, 1, 20)), (1, (3, 3)), (13, (5,)), (4, (1, 30, 2))),
) -> list[Episode]:
    """Episodes of several prompts, one after another; in each longer answer the environment says two tokens."""
    made = []
    for seed, (prompt, answers) in enumerate(shapes):
        for k, answer in enumerate(answers):
            (same,), (other,) = random_episodes([(prompt, 1)], seed), random_episodes([(1, answer)], 100 + 10 * seed + k)
            own = [False] * prompt + [not 2 <= i < 4 for i in range(answer)]
            made.append(dataclasses.replace(other, ids=same.ids[:prompt] + other.ids[1:], own=own))
    return made


@pytest.mark.parametrize("budget", [1, 60, 10_000])
def test_episodes_that_share_a_prompt_score_as_each_alone(base: Base, budget: int) -> None:
    """Log-probabilities and the gradient of z, on every architecture and past Mistral's window."""
    episodes = groups()
    weight = torch.randn(len(episodes), generator=torch.Generator().manual_seed(5))
    with adapted(base) as adapter:
        logps = [naive(base, e).gather(1, own_tokens(e)[:, None])[:, 0] for e in episodes]
        expected = gradients(adapter, torch.stack([w * logp.sum() for w, logp in zip(weight, logps, strict=True)]).sum())
        assert may_share(base)
        found = {name: torch.zeros_like(z) for name, z in adapter.raw.items()}
        for batch in micro_batches(episodes, budget, share=True):
            chosen = [episodes[i] for i in batch]
            hidden, tokens = own_hidden(base, chosen, share=True)
            logp = token_scores(hidden, tokens, base.logits, 1.0, None, VOCABULARY).logp
            torch.testing.assert_close(logp, torch.cat([logps[i] for i in batch]), atol=1e-4, rtol=0)
            per_token = weight[batch].repeat_interleave(torch.tensor([sum(e.own) for e in chosen]))
            for name, g in gradients(adapter, (per_token * logp).sum()).items():
                found[name] += g
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=2e-4, rtol=2e-4)


def test_a_shared_prompt_is_run_once(tiny_base: Base) -> None:
    seen: list[Tensor] = []
    hook = tiny_base.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    own_hidden(tiny_base, random_episodes([(20, 3)] * 1) * 4, share=True)
    hook.remove()
    assert [tuple(ids.shape) for ids in seen] == [(1, 20 + 4 * 2)]  # of an answer of three tokens the last predicts nothing


def test_rows_are_bounded() -> None:
    """A row grows to ROW tokens, or to twice its prompt; only neighbours of one prompt share."""
    short, long = random_episodes([(10, 90)]) * 12, random_episodes([(1000, 400)]) * 6
    assert [len(row) for row in indices_by_row(short, True)] == [5, 5, 2]
    assert row_length(short[:5]) <= ROW < row_length(short[:6])
    assert [len(row) for row in indices_by_row(long, True)] == [2, 2, 2]
    assert indices_by_row(short[:2] + long[:1] + short[:1], True) == [[0, 1], [2], [3]]
    assert indices_by_row(short[:2], False) == [[0], [1]]


def test_a_base_that_somebody_changed_shares_nothing(tiny_base: Base) -> None:
    handle = tiny_base.model.model.layers[0].self_attn.register_forward_hook(lambda module, args, out: out)
    assert not may_share(tiny_base)
    handle.remove()
    assert may_share(tiny_base)


@pytest.mark.parametrize("budget", [1, 10, 26, 50, 10_000])
def test_micro_batches_hold_each_episode_once_and_keep_the_budget(budget: int) -> None:
    episodes = random_episodes([(3, n % 11 + 1) for n in range(40)])
    batches = micro_batches(episodes, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(40))
    for batch in batches:
        padded = len(batch) * max(len(episodes[i].ids) for i in batch)
        assert padded <= budget or len(batch) == 1  # an episode longer than the budget goes alone
    assert micro_batches([], budget) == []


def test_micro_batches_of_shared_rows_keep_the_budget() -> None:
    episodes = [e for prompt in range(1, 20) for e in random_episodes([(prompt, 7)], seed=prompt) * 5]
    batches = micro_batches(episodes, 200, share=True)
    assert sorted(i for batch in batches for i in batch) == list(range(len(episodes)))
    for batch in batches:
        chosen = [episodes[i] for i in batch]
        lengths = [row_length([chosen[i] for i in row]) for row in indices_by_row(chosen, True)]
        assert len(lengths) * max(lengths) <= 200


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns, in forward or backward."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


def test_no_tensor_of_batch_time_vocabulary_is_ever_made(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one of [own tokens, vocabulary]: forward and backward, KL over the whole vocabulary included."""
    monkeypatch.setattr(scores, "CHUNK_ELEMENTS", 8 * VOCABULARY)
    episodes = random_episodes([(6, 50)] * 10)
    with adapted(tiny_base) as adapter:
        with Largest() as full:
            tiny_base.model(torch.tensor([e.ids for e in episodes]))
        assert full.elements >= 10 * 56 * VOCABULARY  # the measure sees what it should
        with Largest() as seen:
            with torch.no_grad(), adapter.disabled():
                reference, _ = own_hidden(tiny_base, episodes)
            hidden, tokens = own_hidden(tiny_base, episodes)
            found = token_scores(hidden, tokens, tiny_base.logits, 1.0, reference, VOCABULARY)
            (found.logp.sum() + found.kl.sum()).backward()
    assert seen.elements < 10 * 50 * VOCABULARY / 2


def test_the_backward_pass_keeps_no_chunk(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "CHUNK_ELEMENTS", 8 * VOCABULARY)
    hidden = torch.randn(64, tiny_base.model.config.hidden_size, requires_grad=True)
    saved: list[weakref.ref[Tensor]] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(weakref.ref(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = token_scores(hidden, torch.arange(64), tiny_base.logits, 1.0, None, VOCABULARY)
    kept = [tensor for tensor in (ref() for ref in saved) if tensor is not None]
    assert [tensor.shape for tensor in kept] == [hidden.shape]
    assert found.logp.requires_grad


def test_scoring_keeps_no_cache(tiny_base: Base) -> None:
    made: list[Any] = []
    hook = tiny_base.model.base_model.register_forward_hook(lambda module, args, output: made.append(output.past_key_values))
    own_hidden(tiny_base, random_episodes())
    hook.remove()
    assert made == [None]


def test_a_head_that_is_not_understood_is_scored_all_the_same(make_base: Callable[..., Base]) -> None:
    """Then the base's own logits take the place of the hidden states."""
    shape = {"vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80}
    base = make_base(transformers.LlamaConfig(**shape, eos_token_id=298, pad_token_id=299))
    whole = dataclasses.replace(base, split_head=False)
    episodes = random_episodes()
    with torch.no_grad():
        split = token_scores(*own_hidden(base, episodes), base.logits, 1.0, None, VOCABULARY).logp
        passed = token_scores(*own_hidden(whole, episodes), whole.logits, 1.0, None, VOCABULARY).logp
    torch.testing.assert_close(split, passed, atol=1e-5, rtol=0)
