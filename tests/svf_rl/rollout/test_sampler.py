"""The sampler against transformers' own `generate`, against a naive forward, and against enumerated distributions."""

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy import stats

from svf_rl.base.load import Base
from svf_rl.errors import UserError
from svf_rl.rollout import native
from svf_rl.rollout.engine import Engine, Unknown
from svf_rl.rollout.sampler import PREFILL, Sampling, compacted, draw, sample
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.svf.factorize import factorize
from svf_rl.svf.linear import SVFLinear
from svf_rl.types import Completion, Expert

WAYS = ["whole rollouts", "step by step"]
_written: dict[Any, tuple[list[int], Any]] = {}
LENGTHS = (1, 20, 3, 13, 8, 31, 5)
NEW = 16


@pytest.fixture(params=WAYS, autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs by native.py where that knows the base, and again by the engines for everything else."""
    if request.param == "step by step":
        monkeypatch.setattr(native, "check_fits", unknown)
    return str(request.param)


def unknown(*about: Any) -> None:
    raise Unknown("a test")


step_by_step = pytest.mark.parametrize("way", WAYS[1:], indirect=True)


def random_prompts(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(256) for _ in range(length)] for length in lengths]


def greedy(base: Base, prompts: list[list[int]], rows: int = 128, tokens: int = NEW) -> list[list[int]]:
    return [c.ids for c in sample(base, prompts, Sampling(tokens, 0.0, rows), [0] * len(prompts))]


def generated(base: Base, prompt: list[int], tokens: int = NEW) -> list[int]:
    """What the library's own generate writes after one prompt. Asked of the same base again, the answer is remembered."""
    stops, adapted = sorted(base.codec.stop_ids), any(isinstance(m, SVFLinear) for m in base.model.modules())
    key = (id(base.model), adapted, tuple(stops), tuple(prompt), tokens)
    if key not in _written:
        _written[key] = (_generate(base, prompt, tokens, stops), base.model)  # the model too: its id is not given again
    return _written[key][0]


def _generate(base: Base, prompt: list[int], tokens: int, stops: list[int]) -> list[int]:
    config = transformers.GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=stops or None, pad_token_id=0)
    ids = torch.tensor([prompt])
    written = base.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return written[0, len(prompt) :].tolist()


def generated_together(base: Base, prompts: list[list[int]]) -> list[list[int]]:
    """The same for a batch, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    stops = sorted(base.codec.stop_ids)
    config = transformers.GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=stops)
    rows = base.model.generate(ids, attention_mask=mask, generation_config=config)[:, width:].tolist()
    return [row[: next((i + 1 for i, token in enumerate(row) if token in stops), NEW)] for row in rows]


@torch.no_grad()
def naive_logprobs(model: Any, prompt: list[int], ids: list[int], temperature: float) -> torch.Tensor:
    """One forward over the whole sequence, no cache, no padding."""
    logits = model(torch.tensor([prompt + ids]), use_cache=False).logits[0].float()
    table = torch.log_softmax(logits / temperature, -1)
    return torch.stack([table[len(prompt) + t - 1, token] for t, token in enumerate(ids)])


def naive_best(model: Any, prompt: list[int], ids: list[int]) -> tuple[list[int], torch.Tensor]:
    """The likeliest token after every prefix of `ids`, and its log-probability."""
    with torch.no_grad():
        scores = model(torch.tensor([prompt + ids]), use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    logprobs, best = torch.log_softmax(scores, -1).max(-1)
    return best.tolist(), logprobs


class Calls:
    """Records how many prompts, and how many rows, the engine runs at a time."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.prefills: list[tuple[int, ...]] = []
        self.decodes: list[int] = []
        prefill, decode = Engine.prefill, Engine.decode
        patch.setattr(Engine, "prefill", lambda e, ids, *a: self.prefills.append(tuple(ids.shape)) or prefill(e, ids, *a))
        patch.setattr(Engine, "decode", lambda e, ids, *a: self.decodes.append(len(ids)) or decode(e, ids, *a))
        patch.setattr(Engine, "checked", lambda e: e)


# ---- greedy: the library's tokens


def test_greedy_equals_generate_for_each_prompt(base: Base) -> None:
    prompts = random_prompts()
    prompts += [prompts[3], prompts[0], prompts[3]]  # copies share a prefill
    expected = [generated(base, p) for p in prompts]
    assert greedy(base, prompts, rows=64) == expected
    assert greedy(base, prompts, rows=3) == expected  # refilled


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_greedy_equals_generate_one_at_a_time(name: str, architectures: dict[str, Base]) -> None:
    assert greedy(architectures[name], random_prompts(), rows=1) == [generated(architectures[name], p) for p in random_prompts()]


def test_greedy_equals_generate_on_a_batch_padded_on_the_left(base: Base) -> None:
    prompts = random_prompts()
    assert greedy(base, prompts, rows=4) == generated_together(base, prompts)


def test_the_window_is_shorter_than_the_sequences_and_matters(architectures: dict[str, Base], monkeypatch: Any) -> None:
    base, prompts = architectures["mistral"], random_prompts()
    assert base.model.config.sliding_window < max(LENGTHS)
    windowed = greedy(base, prompts)
    monkeypatch.setattr(base.model.config, "sliding_window", None)
    assert greedy(base, prompts) != windowed


SMALL = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "sliding_window": 6,
    "eos_token_id": 298,
    "bos_token_id": 298,
    "pad_token_id": 299,
}
KINDS = {"layer_types": ["sliding_attention", "full_attention"] * 2}
OTHERS = {
    "qwen2, every other layer sees a window": lambda: transformers.Qwen2Config(**SMALL, **KINDS, use_sliding_window=True),
    "qwen2, its window switched off": lambda: transformers.Qwen2Config(**SMALL, use_sliding_window=False),
    "gemma2, window and capped scores": lambda: transformers.Gemma2Config(**SMALL, **KINDS, query_pre_attn_scalar=12),
    "gemma3, two rotations": lambda: transformers.Gemma3TextConfig(**SMALL, **KINDS, query_pre_attn_scalar=12),
    "phi3, a window": lambda: transformers.Phi3Config(**SMALL, original_max_position_embeddings=128),
}


@pytest.mark.parametrize("name", OTHERS)
def test_greedy_equals_generate_on_bases_with_other_attention(name: str, make_base: Callable[..., Base]) -> None:
    base, prompts = make_base(OTHERS[name]()), random_prompts()
    assert greedy(base, prompts, rows=3) == [generated(base, p) for p in prompts]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_greedy_equals_generate_with_eager_attention(
    name: str, architectures: dict[str, Base], converted: Callable[..., Base]
) -> None:
    base, prompts = converted(architectures[name], torch.float32), random_prompts()
    base.model.set_attn_implementation("eager")
    assert greedy(base, prompts, rows=3) == [generated(base, p) for p in prompts]


def test_greedy_equals_generate_with_an_adapter(base: Base) -> None:
    adapter = SVFAdapter(base.model, factorize(base, "attention+mlp"))
    before = greedy(base, random_prompts(), rows=4)
    with torch.no_grad():
        for z in adapter.parameters().values():
            z.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(len(z)))
    adapter.install()
    try:
        written = greedy(base, random_prompts(), rows=4)
        assert written == [generated(base, p) for p in random_prompts()]
        assert written != before
    finally:
        adapter.uninstall()


# ---- where a completion ends


def test_a_stop_token_ends_a_completion_and_belongs_to_it(base: Base, stopping: Callable[..., Base]) -> None:
    prompts = random_prompts()
    written = greedy(stopping(base, set()), prompts)
    stops = {ids[i] for i, ids in enumerate(written)}  # token i of answer i: ends at many lengths
    base = stopping(base, stops)
    for rows in (2, 64):
        done = sample(base, prompts, Sampling(NEW, 0.0, rows), [0] * len(prompts))
        assert [c.ids for c in done] == [generated(base, p) for p in prompts]
        for c in done:
            assert c.stop == ("stop" if c.ids[-1] in stops else "length")
            assert not stops & set(c.ids[:-1])
            assert len(c.logprobs) == len(c.ids)
    assert len({len(c.ids) for c in done}) > 2 or len({token for ids in written for token in ids}) < 10


def test_without_stop_tokens_every_completion_has_full_length(tiny_base: Base, stopping: Callable[..., Base]) -> None:
    done = sample(stopping(tiny_base, set()), random_prompts(), Sampling(7), range(len(LENGTHS)))
    assert {(len(c.ids), c.stop) for c in done} == {(7, "length")}


def test_the_end_of_the_context_ends_a_completion(base: Base) -> None:
    prompts = random_prompts((base.context - 1, base.context - 5, 4))
    done = sample(base, prompts, Sampling(30, 0.0), [0] * 3)
    assert [(len(c.ids), c.stop) for c in done[:2]] == [(1, "length"), (5, "length")]
    assert [c.ids for c in done] == [generated(base, p, n) for p, n in zip(prompts, (1, 5, 30), strict=True)]


@pytest.mark.parametrize("tokens", [1, 2])
def test_very_short_answers(tiny_base: Base, tokens: int) -> None:
    assert greedy(tiny_base, random_prompts(), 3, tokens) == [generated(tiny_base, p, tokens) for p in random_prompts()]


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"rows": 0}, {"temperature": -1.0}, {"temperature": float("nan")}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_no_prompt_is_no_completion(tiny_base: Base) -> None:
    assert sample(tiny_base, [], Sampling(), []) == []


def test_an_empty_prompt_is_refused(tiny_base: Base) -> None:
    with pytest.raises(UserError, match="at least one token"):
        sample(tiny_base, [[1], []], Sampling(), [0, 0])


@pytest.mark.parametrize("length", [128, 129])
def test_a_prompt_that_fills_the_context_is_refused(tiny_base: Base, length: int) -> None:
    with pytest.raises(UserError, match=f"{length} tokens leaves no room .* context of 128; shorten"):
        sample(tiny_base, [[1], [1] * length], Sampling(), [0, 0])


# ---- what is recorded


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_recorded_logprobs_are_those_of_a_naive_forward(base: Base, temperature: float) -> None:
    prompts = random_prompts()
    for prompt, c in zip(prompts, sample(base, prompts, Sampling(NEW, temperature, 3), range(len(prompts))), strict=True):
        torch.testing.assert_close(
            torch.tensor(c.logprobs), naive_logprobs(base.model, prompt, c.ids, temperature), atol=1e-4, rtol=0
        )


def test_greedy_records_the_logprobs_of_temperature_one(tiny_base: Base) -> None:
    prompts = random_prompts()
    for prompt, c in zip(prompts, sample(tiny_base, prompts, Sampling(NEW, 0.0, 3), [0] * len(prompts)), strict=True):
        torch.testing.assert_close(torch.tensor(c.logprobs), naive_logprobs(tiny_base.model, prompt, c.ids, 1.0), atol=1e-4, rtol=0)


def test_bfloat16_is_no_further_from_the_truth_than_the_library_is(base: Base, converted: Callable[..., Base]) -> None:
    """In bfloat16 (8 bits) scores of another kernel differ by several per cent, so tokens may differ from `generate`'s where two
    are nearly tied. Against float32: what is recorded errs as much as the library's own bfloat16 forward does, within a quarter,
    and a token that is written could be the best by such an error."""
    half, prompts = converted(base, torch.bfloat16), random_prompts()
    found = sample(half, prompts, Sampling(8, 0.0, 3), [0] * len(prompts))
    tables = [(scores(half.model, p, c.ids), scores(base.model, p, c.ids)) for p, c in zip(prompts, found, strict=True)]
    error = max(float((theirs - truth).abs().max()) for theirs, truth in tables)
    for c, (_, truth) in zip(found, tables, strict=True):
        chosen = truth.gather(1, torch.tensor(c.ids)[:, None])[:, 0]
        assert bool((truth.amax(-1) - chosen < 2 * error).all())
        torch.testing.assert_close(torch.tensor(c.logprobs), chosen, atol=1.25 * error, rtol=0)


@torch.no_grad()
def scores(model: Any, prompt: list[int], ids: list[int]) -> torch.Tensor:
    """Log-probabilities of the whole vocabulary after every prefix of `ids`, in float32."""
    return torch.log_softmax(model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].float(), -1)


# ---- a completion depends on its prompt and its seed, and on nothing else


def test_a_sample_does_not_depend_on_rows_order_or_company(base: Base, converted: Callable[..., Base]) -> None:
    """In float64, so that the rounding of differently shaped products cannot move a score across a draw."""
    double, prompts, seeds = converted(base, torch.float64), random_prompts() * 2, list(range(100, 114))
    together = sample(double, prompts, Sampling(NEW, 1.0, 64), seeds)
    order = random.Random(1).sample(range(14), 14)
    shuffled = sample(double, [prompts[i] for i in order], Sampling(NEW, 1.0, 5), [seeds[i] for i in order])
    few = [2, 11]
    alone = [sample(double, [prompts[i]], Sampling(NEW, 1.0, 1), [seeds[i]])[0] for i in few]
    assert [c.ids for c in shuffled] == [together[i].ids for i in order]
    assert [c.ids for c in alone] == [together[i].ids for i in few]
    for other, i in [*zip(shuffled, order, strict=True), *zip(alone, few, strict=True)]:
        np.testing.assert_allclose(other.logprobs, together[i].logprobs, atol=1e-6)
    assert together[0].ids != together[7].ids  # the same prompt, another seed


def test_the_draws_of_a_seed_do_not_depend_on_the_limit(tiny_base: Base) -> None:
    short, long = (sample(tiny_base, random_prompts(), Sampling(n), range(7)) for n in (4, 12))
    assert [c.ids for c in short] == [c.ids[:4] for c in long]


# ---- rows of several kinds


def random_experts(adapter: SVFAdapter, count: int) -> list[Expert | None]:
    """The base, and experts with values between 0.5 and 2."""
    draws = [torch.Generator().manual_seed(seed) for seed in range(count - 1)]
    spread = [{n: torch.empty_like(s).uniform_(0.5, 2.0, generator=g) for n, s in adapter.spectra.items()} for g in draws]
    return [None, *map(Expert, spread)]


def test_every_row_writes_under_its_own_expert(base: Base) -> None:
    """Against the expert merged, one row at a time, without a cache."""
    adapter = SVFAdapter(base.model, factorize(base, "attention+mlp"))
    experts, prompts = random_experts(adapter, 4), [*random_prompts()[:4], *random_prompts()[1:4]]
    kinds = [random.Random(1).randrange(4) for _ in prompts]
    alone = Expert({name: torch.ones_like(s) for name, s in adapter.spectra.items()})
    adapter.install()
    try:
        with adapter.mixtures(experts) as choose:
            batches = [sample(base, prompts, Sampling(NEW, 0.0, rows), [0] * 7, kinds, choose) for rows in (4, 64)]
        for i, (kind, prompt) in enumerate(zip(kinds, prompts, strict=True)):
            adapter.load_expert(experts[kind] or alone)
            ids = batches[0][i].ids
            best, logprobs = naive_best(base.model, prompt, ids)
            for c in (batch[i] for batch in batches):
                assert c.ids == ids == best
                torch.testing.assert_close(torch.tensor(c.logprobs), logprobs, atol=1e-4, rtol=0)
    finally:
        adapter.uninstall()


@step_by_step
def test_only_equal_prompts_of_equal_kind_share_a_prefill(tiny_base: Base) -> None:
    seen: list[list[int]] = []
    prompts = [random_prompts()[1]] * 6
    sample(tiny_base, prompts, Sampling(2, 0.0), [0] * 6, [5, 3, 5, 5, 3, 8], lambda kinds: seen.append(kinds.tolist()))
    assert seen == [[5, 8], [8, 5, 3], [8, 5, 5, 5, 3, 3]]  # the engine's probe, the prompts, the rows


def test_every_end_is_told(tiny_base: Base, stopping: Callable[..., Base]) -> None:
    told: list[tuple[int, Completion]] = []
    base = stopping(tiny_base, set(range(0, 300, 12)))
    found = sample(base, random_prompts() * 4, Sampling(NEW, 1.0, 8), range(28), ended=lambda *end: told.append(end))
    assert sorted(i for i, _ in told) == list(range(28))
    assert all(found[i] is completion for i, completion in told)


def test_an_exception_while_others_are_written_ends_the_rollout(tiny_base: Base) -> None:
    def interrupt(index: int, completion: Completion) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(tiny_base, random_prompts() * 40, Sampling(96, 1.0, 1), range(280), ended=interrupt)
    assert [t.name for t in threading.enumerate() if t.name.startswith("rollout")] == []


# ---- no work is wasted


@step_by_step
def test_copies_are_prefilled_once_and_finished_rows_leave(
    tiny_base: Base, stopping: Callable[..., Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [p for p in random_prompts() for _ in range(8)]
    stops = set(range(0, 300, 12))  # a token in twelve ends: lengths vary widely
    calls = Calls(monkeypatch)
    done = sample(stopping(tiny_base, stops), prompts, Sampling(NEW, 1.0, 16), range(56))
    needed = sum(len(c.ids) - 1 for c in done)  # the first token comes from the prefill
    assert calls.prefills[0] == (2, 31)  # 16 rows are 8 copies of the two longest prompts
    assert sum(rows for rows, _ in calls.prefills) < 28  # at most once for each refill that the copies of a prompt straddle
    assert sum(calls.decodes) < 1.25 * needed
    assert needed < 0.7 * 56 * NEW


@pytest.mark.parametrize("alive", ["", "0", "1", "0011", "1100", "0110101", "1111"])
def test_a_shrinking_batch_keeps_the_living_and_moves_only_into_gaps(alive: str) -> None:
    kept = compacted(torch.tensor([mark == "1" for mark in alive], dtype=torch.bool)).tolist()
    assert sorted(kept) == [i for i, mark in enumerate(alive) if mark == "1"]
    assert all(row == place or alive[place] == "0" for place, row in enumerate(kept))


@step_by_step
def test_prompts_of_similar_length_are_prefilled_together(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most PREFILL tokens at a time, padding included."""
    calls, lengths = Calls(monkeypatch), [*range(1, 128), *range(1, 128)]
    sample(tiny_base, random_prompts(lengths), Sampling(1, 0.0, 254), [0] * 254)
    assert max(rows * width for rows, width in calls.prefills) <= PREFILL
    assert sum(rows for rows, _ in calls.prefills) == 254
    assert sum(rows * width for rows, width in calls.prefills) < 1.1 * sum(lengths)


# ---- draw


LOGITS = torch.tensor([2.0, -1.0, 0.5, 0.0, -3.0, 1.5])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    n = 40_000
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(7))
    tokens, logprobs = draw(LOGITS.expand(n, -1), temperature, uniform)
    weights = np.exp(LOGITS.double().numpy() / temperature)
    expected = weights / weights.sum()
    assert stats.chisquare(np.bincount(tokens, minlength=6), n * expected).pvalue > 0.01
    np.testing.assert_allclose(logprobs, np.log(expected)[tokens], atol=1e-6)


def test_first_tokens_of_many_seeds_follow_the_base(tiny_base: Base) -> None:
    """Prompt to token with the streams of consecutive seeds, against the enumerated distribution."""
    prompt, n = random_prompts()[1], 6000
    drawn = [c.ids[0] for c in sample(tiny_base, [prompt] * n, Sampling(1, 1.0, n), range(n))]
    with torch.no_grad():
        expected = torch.softmax(tiny_base.model(torch.tensor([prompt])).logits[0, -1].double(), 0).numpy() * n
    counts = np.bincount(drawn, minlength=len(expected))
    often = expected >= 20
    observed = [*counts[often], counts[~often].sum()]
    assert len(observed) > 20
    assert stats.chisquare(observed, [*expected[often], expected[~often].sum()]).pvalue > 0.01


def test_greedy_takes_the_best() -> None:
    tokens, logprobs = draw(torch.stack([LOGITS, -LOGITS]), 0.0, torch.tensor([0.99, 0.99]))
    assert tokens.tolist() == [0, 4]
    np.testing.assert_allclose(
        logprobs, [2 - np.log(np.exp(LOGITS.numpy()).sum()), 3 - np.log(np.exp(-LOGITS.numpy()).sum())], atol=1e-6
    )


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_a_token_of_probability_zero_is_never_drawn(uniform: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(500, 1000)
    logits[:, :3] = logits[:, -3:] = -torch.inf
    tokens, logprobs = draw(logits, 1.0, torch.full((500,), uniform))
    assert bool(logprobs.isfinite().all())
    assert bool(((tokens >= 3) & (tokens < 997)).all())


def test_a_draw_inverts_the_cumulative_distribution() -> None:
    uniform = torch.linspace(0, 1, 1001)[:-1]
    tokens, _ = draw(LOGITS.expand(1000, -1), 1.0, uniform)
    cumulative = np.exp(LOGITS.double().numpy()).cumsum()
    assert tokens.tolist() == np.searchsorted(cumulative / cumulative[-1], uniform.double().numpy(), side="right").tolist()


@pytest.mark.parametrize("width", [63, 64, 65, 2048])
def test_a_draw_inverts_it_over_any_number_of_blocks(width: int) -> None:
    """Beside float64, where the number is not within rounding of a step."""
    stream = torch.Generator().manual_seed(width)
    logits, uniform = 3 * torch.randn(300, width, generator=stream), torch.rand(300, generator=stream)
    logits[:, 10:20] = -torch.inf
    tokens, logprobs = draw(logits, 1.0, uniform)
    cumulative = torch.softmax(logits.double(), -1).cumsum(-1)
    clear = (cumulative - uniform[:, None]).abs().amin(-1) > 1e-6
    assert clear.sum() > 290
    assert torch.equal(tokens[clear], (cumulative <= uniform[:, None]).sum(-1)[clear])
    torch.testing.assert_close(logprobs, torch.log_softmax(logits, -1).gather(1, tokens[:, None])[:, 0], atol=1e-5, rtol=0)
