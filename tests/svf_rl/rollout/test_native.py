"""native.c against the model's own forward, an enumeration, and itself with other vectors; and what it refuses."""

import copy
import dataclasses
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from svf_rl.base.load import Base
from svf_rl.rollout import native
from svf_rl.rollout.engine import Unknown
from svf_rl.rollout.native import FAMILIES, FLAGS, Native, check_fits, compiled
from svf_rl.rollout.sampler import Sampling, sample
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.svf.factorize import factorize
from svf_rl.types import Completion, Expert

ONE = torch.zeros(1, dtype=torch.long)


def nothing(kinds: torch.Tensor) -> None:
    """There is one kind."""


def write(base: Base, prompts: list[list[int]], tokens: int = 12, rows: int = 5, temperature: float = 1.0) -> list[Completion]:
    """By native.c or not at all."""
    uniforms = torch.rand(len(prompts), tokens, generator=torch.Generator().manual_seed(0))
    ready = Native(base, rows, base.context, ONE, nothing)
    limits = [min(tokens, base.context - len(p)) for p in prompts]
    found = {}
    for some in ready.run([(0, *p) for p in prompts], tokens, temperature, uniforms, limits, []):
        found.update(some)
    return [found[i] for i in range(len(prompts))]


def some_prompts(n: int, longest: int = 40, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(256) for _ in range(rng.randrange(1, longest))] for _ in range(n)]


@torch.no_grad()
def agree(base: Base, prompts: list[list[int]], found: list[Completion], atol: float = 2e-5) -> None:
    """Log-probabilities are those of one forward over prompt and completion."""
    for prompt, c in zip(prompts, found, strict=True):
        scores = base.model(torch.tensor([prompt + c.ids]), use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        truth = scores.gather(1, torch.tensor(c.ids)[:, None])[:, 0]
        np.testing.assert_allclose(c.logprobs, truth.numpy(), atol=atol)


@pytest.fixture(params=sorted(FAMILIES - {"mistral"}))
def known(request: pytest.FixtureRequest, architectures: dict[str, Base]) -> Base:
    return architectures[request.param]


def test_families_it_knows_run_on_it(known: Base) -> None:
    prompts = some_prompts(9) + some_prompts(1, 2) + [[7] * 127]
    agree(known, prompts, write(known, prompts))


def test_a_window_that_is_longer_than_everything_is_none(architectures: dict[str, Base]) -> None:
    base = copy.copy(architectures["mistral"])
    check_fits(base, 1, 8)
    with pytest.raises(Unknown, match="window"):
        check_fits(base, 1, 9)


def test_a_base_of_other_sizes(make_base: Callable[..., Base]) -> None:
    """Heads of more than four vectors, outputs that fill no panel, biases, groups of five heads, half a head turned."""
    shape = {"hidden_size": 80, "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 5, "vocab_size": 301}
    grouped = {"num_key_value_heads": 1, "head_dim": 80, "max_position_embeddings": 128, "attention_bias": True, "mlp_bias": True}
    for config in (
        transformers.LlamaConfig(**shape, **grouped),
        transformers.Phi3Config(**shape, num_key_value_heads=5, pad_token_id=0, rope_parameters={
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
    ):  # fmt: skip
        base = make_base(config)
        prompts = some_prompts(12)
        agree(base, prompts, write(base, prompts))


def test_a_completion_is_the_same_to_the_last_bit_in_any_company(tiny_base: Base) -> None:
    prompts = some_prompts(30)
    alone = [write(tiny_base, prompts, rows=rows) for rows in (1, 3, 30)]
    assert alone[0] == alone[1] == alone[2]


def test_threads_share_the_prompts(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = some_prompts(50)
    one = write(tiny_base, prompts, rows=7)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert write(tiny_base, prompts, rows=7) == one
    assert write(tiny_base, prompts, rows=2) == one


@pytest.mark.parametrize("copies", [1, 3, 20])
def test_rows_of_one_prompt_share_it(tiny_base: Base, copies: int) -> None:
    """More copies than rows, too."""
    prompts = [p for p in some_prompts(6) for _ in range(copies)]
    found = write(tiny_base, prompts, rows=8)
    agree(tiny_base, prompts, found)
    if copies > 1:
        assert found[0] != found[1]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_a_draw_is_the_first_token_whose_cumulative_mass_exceeds_the_number(tiny_base: Base, temperature: float) -> None:
    """Against numpy in float64, but where the number lies within rounding of a boundary."""
    prompts = some_prompts(200)
    found, uniforms = write(tiny_base, prompts, 1, 64, temperature), torch.rand(200, 1, generator=torch.Generator().manual_seed(0))
    checked = 0
    for prompt, c, u in zip(prompts, found, uniforms[:, 0].tolist(), strict=True):
        with torch.no_grad():
            logits = tiny_base.model(torch.tensor([prompt]), use_cache=False).logits[0, -1].double().numpy() / temperature
        mass = np.exp(logits - logits.max())
        ends = mass.cumsum() / mass.sum()
        if np.abs(ends - u).min() > 1e-4:
            assert c.ids == [int((ends > u).argmax())]
            np.testing.assert_allclose(c.logprobs, np.log(mass[c.ids] / mass.sum()), atol=1e-4)
            checked += 1
    assert checked > 150


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24, 1.0])
def test_the_ends_of_the_unit_interval(tiny_base: Base, uniform: float) -> None:
    ready = Native(tiny_base, 64, 64, ONE, nothing)
    ((found,),) = [some.values() for some in ready.run([(0, 5)], 4, 1.0, torch.full((1, 4), uniform), [4], []) if some]
    assert all(0 <= i < 300 for i in found.ids)
    assert all(np.isfinite(found.logprobs))


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("rank", [None, 5])
def test_kinds_have_factors_of_their_own(tiny_base: Base, with_base: bool, rank: int | None) -> None:
    """Rows under different experts, and the base, against each of them merged. The base adds an exact zero."""
    adapter = SVFAdapter(tiny_base.model, factorize(tiny_base, "attention+mlp", rank))
    draws = [torch.Generator().manual_seed(seed) for seed in range(3)]
    spread = [Expert({n: torch.empty_like(s).uniform_(0.8, 1.25, generator=g) for n, s in adapter.spectra.items()}) for g in draws]
    experts: list[Expert | None] = [*spread[:2], None if with_base else spread[2]]
    prompts, kinds, plain = some_prompts(12), [2, 0, 1] * 4, write(tiny_base, some_prompts(12))
    adapter.install()
    try:
        with adapter.mixtures(experts) as choose:
            ready = Native(tiny_base, 5, 64, torch.tensor([0, 1, 2]), choose)
            tagged = [(k, *p) for k, p in zip(kinds, prompts, strict=True)]
            uniforms = torch.rand(12, 12, generator=torch.Generator().manual_seed(0))
            found = {i: c for some in ready.run(tagged, 12, 1.0, uniforms, [12] * 12, []) for i, c in some.items()}
        if with_base:
            assert [found[i] for i in range(0, 12, 3)] == plain[::3]
        for k, expert in enumerate(spread[:2]):
            adapter.load_expert(expert)
            agree(tiny_base, prompts[kinds.index(k) :: 3], [found[i] for i in range(kinds.index(k), 12, 3)], atol=1e-4)
    finally:
        adapter.uninstall()


def test_weights_are_those_of_the_adapter_at_that_moment(tiny_base: Base) -> None:
    adapter, prompts = SVFAdapter(tiny_base.model, factorize(tiny_base, "attention+mlp")), some_prompts(3)
    adapter.install()
    try:
        before = write(tiny_base, prompts)
        with torch.no_grad():
            for z in adapter.parameters().values():
                z.mul_(1.5)
        after = write(tiny_base, prompts)
        agree(tiny_base, prompts, after)
        assert before != after
    finally:
        adapter.uninstall()


def test_scores_that_are_no_numbers_end_nothing_but_the_sense(tiny_base: Base) -> None:
    """A diverged base writes something, in bounds, and its log-probabilities say so."""
    base = dataclasses.replace(tiny_base, model=copy.deepcopy(tiny_base.model))
    ready = Native(base, 64, 64, ONE, nothing)
    ready._alive[0].fill_(torch.nan)  # the table of embeddings, of a copy of the base
    for temperature in (0.0, 1.0):
        ((found,),) = [some.values() for some in ready.run([(0, 5)], 4, temperature, torch.rand(1, 4), [4], []) if some]
        assert all(0 <= i < 300 for i in found.ids)
        assert all(np.isnan(found.logprobs))


# ---- what it refuses


REFUSED: dict[str, tuple[str, Callable[[Any], None]]] = {
    "float64": ("float64", lambda model: model.double()),
    "activation": ("another kind", lambda model: setattr(model.config, "hidden_act", "gelu")),
    "hook": ("not the library's own", lambda model: model.model.register_forward_hook(print)),
    "head": ("head are not", lambda model: model.lm_head.register_forward_hook(print)),
    "linear": ("has to be called", lambda model: model.model.layers[1].mlp.down_proj.register_forward_hook(lambda *_: None)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_does_not_know_is_refused(name: str, tiny_base: Base) -> None:
    reason, change = REFUSED[name]
    base = dataclasses.replace(tiny_base, model=copy.deepcopy(tiny_base.model))
    change(base.model)
    with pytest.raises(Unknown, match=reason):
        Native(base, 64, 64, ONE, nothing)


@pytest.mark.parametrize("name", ["gemma", "gpt2"])
def test_other_families_are_refused(name: str, architectures: dict[str, Base]) -> None:
    with pytest.raises(Unknown, match="another kind"):
        Native(architectures[name], 64, 64, ONE, nothing)


def test_a_size_that_is_no_multiple_of_the_vectors_is_refused(make_base: Callable[..., Base]) -> None:
    shape = {"hidden_size": 36, "intermediate_size": 80, "num_hidden_layers": 1, "num_attention_heads": 3, "vocab_size": 300}
    with pytest.raises(Unknown, match="no multiple"):
        Native(make_base(transformers.LlamaConfig(**shape, num_key_value_heads=3)), 64, 64, ONE, nothing)


def test_a_large_base_is_left_to_torch_where_a_thread_has_few_rows(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "SMALL", 10_000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    check_fits(tiny_base, 64, 64)
    with pytest.raises(Unknown, match="large"):
        check_fits(tiny_base, 63, 64)


@pytest.mark.parametrize("field", ["scale", "epsilon", "turned", "layers"])
def test_a_base_that_is_read_wrongly_is_found_out(field: str, tiny_base: Base) -> None:
    ready = Native(tiny_base, 64, 64, ONE, nothing)
    ready._check()
    setattr(ready.model, field, {"scale": 0.3, "epsilon": 0.5, "turned": 14, "layers": 1}[field])
    with pytest.raises(Unknown, match="differ"):
        ready._check()


# ---- compiling


def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = compiled(tmp_path)
    assert path.parent == tmp_path
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert compiled(tmp_path) == path


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = compiled(tmp_path / "file")
    assert path.stat().st_size > 10_000
    path.unlink()
    path.parent.rmdir()


@pytest.mark.parametrize("compiler", ["/no/such/compiler", "false"])
def test_without_a_compiler_the_engine_takes_over(
    compiler: str, tiny_base: Base, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = sample(tiny_base, [[1, 2, 3]], Sampling(6), [0])
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("SVF_RL_CACHE", str(tmp_path))
    native._load.cache_clear()
    try:
        for _ in range(2):
            assert sample(tiny_base, [[1, 2, 3]], Sampling(6), [0])[0].ids == expected[0].ids
    finally:
        native._load.cache_clear()
    (warning,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "C compiler" in warning.message


@pytest.mark.parametrize("vectors", [["-U__AVX512F__", "-U__AVX__"], ["-U__AVX512F__", "-D__AVX512F__"]])
def test_processors_with_shorter_and_longer_vectors(
    vectors: list[str], tiny_base: Base, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Four and sixteen numbers in a vector, which the compiler makes of those that this processor has."""
    prompts = some_prompts(20)
    expected = write(tiny_base, prompts)
    monkeypatch.setattr(native, "FLAGS", (*FLAGS, "-O1", *vectors, "-Wall", "-Wextra", "-Wno-psabi", "-Werror"))
    monkeypatch.setenv("SVF_RL_CACHE", str(tmp_path))
    native._load.cache_clear()
    try:
        assert native.library().lanes() == (16 if "-D__AVX512F__" in vectors else 4)
        found = write(tiny_base, prompts)
    finally:
        native._load.cache_clear()
    assert [c.ids for c in found] == [c.ids for c in expected]
    agree(tiny_base, prompts, found)
