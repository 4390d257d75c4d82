"""At z = 1 the adapted model is the base, bit for bit; elsewhere its three forms and its gradient are those of U diag(s z) Vt."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from svf_rl.base.load import Base, fingerprint
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.svf.factorize import factorize
from svf_rl.types import Expert, Factors

ALL = "attention+mlp"


@torch.no_grad()
def logits(base: Base, ids: Tensor) -> Tensor:
    out: Tensor = base.model(input_ids=ids).logits
    return out


def plain(factors: dict[str, Factors], z: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """U diag(s z) Vt in float64."""
    return {n: f.U.double() @ torch.diag(f.s.double() * z[n]) @ f.Vt.double() for n, f in factors.items()}


def loss_of(scores: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(scores[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def ones(adapter: SVFAdapter) -> Expert:
    return Expert({name: torch.ones_like(raw) for name, raw in adapter.raw.items()})


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    a, b = a.detach().double(), b.detach().double()
    error = float((a - b).norm() / b.norm())
    assert error < tolerance, f"relative error {error:.2e}"


# ---- the identity


def test_untrained_is_the_base_bit_for_bit(typed_base: Base, adapt: Any, ids: Tensor) -> None:
    before = logits(typed_base, ids)
    with adapt(typed_base) as adapter:
        assert torch.equal(logits(typed_base, ids), before)
        assert torch.equal(typed_base.model(input_ids=ids).logits, before)  # the path with a gradient
        for rows in ([None] * 3, [ones(adapter)] * 3, [None, ones(adapter), None]):
            with adapter.per_row(rows):
                assert torch.equal(logits(typed_base, ids), before)
        with adapter.disabled():
            assert torch.equal(logits(typed_base, ids), before)


@pytest.mark.parametrize("rank", [None, 3])
def test_back_to_one_is_the_base_again(base: Base, adapt: Any, ids: Tensor, random_expert: Any, rank: int | None) -> None:
    before = logits(base, ids)
    with adapt(base, rank=rank) as adapter:
        adapter.load_expert(random_expert(adapter, 0))
        assert not torch.allclose(logits(base, ids), before, atol=0.1)
        with adapter.disabled():
            assert torch.equal(logits(base, ids), before)
        adapter.load_expert(ones(adapter))
        assert torch.equal(logits(base, ids), before)


def test_uninstalling_leaves_the_base_as_it_was(typed_base: Base, ids: Tensor) -> None:
    model = typed_base.model

    def tree() -> list[tuple[str, int]]:
        return [(name, id(part)) for name, part in [*model.named_modules(), *model.named_parameters(), *model.named_buffers()]]

    before, scores = tree(), logits(typed_base, ids)
    adapter = SVFAdapter(model, factorize(typed_base, ALL))
    assert tree() == before, "making an adapter must not touch the model"
    adapter.install()
    optimizer = torch.optim.AdamW(adapter.parameters().values(), lr=0.1)
    for _ in range(2):
        loss_of(model(input_ids=ids).logits, ids).backward()
        optimizer.step()
    assert not torch.equal(logits(typed_base, ids), scores)
    adapter.uninstall()
    assert tree() == before
    assert fingerprint(model) == typed_base.fingerprint
    assert torch.equal(logits(typed_base, ids), scores)
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


# ---- the three forms


def test_every_form_is_the_plain_formula(base: Base, adapt: Any, dense: Any, ids: Tensor, random_expert: Any) -> None:
    """Stated tolerance in float32: 1e-4 of the norm of the logits."""
    adapter = SVFAdapter(base.model, factors := factorize(base, ALL))
    expert = random_expert(adapter, 1)
    truth = dense(base, plain(factors, expert.z))(ids)
    with adapt(base) as adapter:
        adapter.load_expert(expert)
        close(logits(base, ids), truth, 1e-4)  # merged
        with adapter.per_row([expert] * 3):
            close(logits(base, ids), truth, 1e-4)  # factored
        with adapter.per_row([expert, None, expert]):
            close(logits(base, ids)[[0, 2]], truth[[0, 2]], 1e-4)  # residual


def test_forms_agree_in_bfloat16(base: Base, bfloat16_bases: dict[str, Base], adapt: Any, random_expert: Any) -> None:
    """Stated tolerance for one layer in bfloat16, whose step is 2^-8: 1 % of the norm of its output, against float64."""
    name = next(n for n, b in bfloat16_bases.items() if b.name == base.name)
    half = bfloat16_bases[name]
    factors = factorize(half, ALL)
    with adapt(half) as adapter:
        expert = random_expert(adapter, 2)
        weights = plain(factors, expert.z)
        adapter.load_expert(expert)
        for matrix, layer in adapter.layers.items():
            x = torch.randn(3, 7, weights[matrix].shape[1], generator=torch.Generator().manual_seed(0)).bfloat16()
            bias = 0 if layer.base.bias is None else layer.base.bias.double()
            truth = x.double() @ weights[matrix].T + bias
            with torch.no_grad():
                forms = [layer(x)]
                for rows in ([expert] * 3, [expert, expert, None]):
                    with adapter.per_row(rows):
                        forms.append(layer(x))
            assert all(y.dtype == torch.bfloat16 for y in forms)
            close(forms[0], truth, 0.01)
            close(forms[1], truth, 0.01)
            close(forms[2][:2], truth[:2], 0.01)


def test_per_row_is_every_row_alone(base: Base, adapt: Any, ids: Tensor, random_expert: Any) -> None:
    with adapt(base) as adapter:
        experts = [random_expert(adapter, 3), None, random_expert(adapter, 4)]
        alone = []
        for row, expert in zip(ids, experts, strict=True):
            adapter.load_expert(expert or ones(adapter))
            alone.append(logits(base, row[None])[0])
        adapter.load_expert(random_expert(adapter, 5))  # what is installed does not matter to per_row
        for order in ([0, 1, 2], [2, 0, 1], [1, 1, 0], [2, 0, 2], [0]):
            with adapter.per_row([experts[i] for i in order]):
                together = logits(base, ids[order])
            for row, i in zip(together, order, strict=True):
                close(row, alone[i], 1e-4)


def test_a_row_without_expert_is_exactly_the_base(typed_base: Base, adapt: Any, ids: Tensor, random_expert: Any) -> None:
    before = logits(typed_base, ids)
    with adapt(typed_base) as adapter, adapter.per_row([random_expert(adapter, 0), None, None]):
        mixed = logits(typed_base, ids)
    assert torch.equal(mixed[1:], before[1:])
    assert not torch.equal(mixed[0], before[0])


def test_truncated_factors_keep_the_rest_of_the_base(base: Base, adapt: Any, dense: Any, ids: Tensor, random_expert: Any) -> None:
    before = logits(base, ids)
    full = factorize(base, ALL)
    expert = random_expert(SVFAdapter(base.model, factorize(base, ALL, rank=3)), 6)
    padded = {n: torch.cat([z, torch.ones(len(full[n].s) - 3)]) for n, z in expert.z.items()}
    truth = dense(base, plain(full, padded))(ids)
    with adapt(base, rank=3) as adapter:
        assert torch.equal(logits(base, ids), before)
        adapter.load_expert(expert)
        close(logits(base, ids), truth, 1e-4)
        with adapter.per_row([expert] * 3):
            close(logits(base, ids), truth, 1e-4)


# ---- the gradient


def test_gradient_is_that_of_the_plain_formula(base: Base, adapt: Any, dense: Any, ids: Tensor, random_expert: Any) -> None:
    with adapt(base) as adapter:
        expert = random_expert(adapter, 7)
        adapter.load_expert(expert)
        loss_of(base.model(input_ids=ids).logits, ids).backward()
        found = {name: raw.grad for name, raw in adapter.raw.items()}
        assert all(p.grad is None for p in base.model.parameters()), "no gradient of the size of the model"
    z = {name: value.double().requires_grad_() for name, value in expert.z.items()}
    loss_of(dense(base, plain(factorize(base, ALL), z))(ids), ids).backward()
    for name, value in z.items():
        assert value.grad is not None
        close(found[name], value.grad, 1e-3)


def test_gradient_is_the_slope(base: Base, adapt: Any, dense: Any, ids: Tensor, random_expert: Any) -> None:
    """Central differences of the plain formula along two random directions."""
    factors = factorize(base, ALL)
    with adapt(base) as adapter:
        expert = random_expert(adapter, 8)
        adapter.load_expert(expert)
        loss_of(base.model(input_ids=ids).logits, ids).backward()
        found = {name: raw.grad.double() for name, raw in adapter.raw.items()}
        directions = [{n: z - 1 for n, z in random_expert(adapter, seed).z.items()} for seed in (9, 10)]

    def loss_at(step: float, direction: dict[str, Tensor]) -> float:
        moved = {n: z.double() + step * direction[n] for n, z in expert.z.items()}
        return float(loss_of(dense(base, plain(factors, moved))(ids), ids))

    for direction in directions:
        slope = (loss_at(0.002, direction) - loss_at(-0.002, direction)) / 0.004
        assert slope == pytest.approx(sum(float((g * direction[n]).sum()) for n, g in found.items()), rel=0.01, abs=2e-3)


def test_gradient_in_bfloat16_points_the_same_way(bfloat16_bases: dict[str, Base], adapt: Any, dense: Any, ids: Tensor) -> None:
    base = bfloat16_bases["llama"]
    with adapt(base) as adapter:
        loss_of(base.model(input_ids=ids).logits.float(), ids).backward()
        found = torch.cat([raw.grad for raw in adapter.raw.values()]).double()
        z = {name: torch.ones_like(raw, dtype=torch.float64).requires_grad_() for name, raw in adapter.raw.items()}
    loss_of(dense(base, plain(factorize(base, ALL), z))(ids), ids).backward()
    truth = torch.cat([value.grad for value in z.values()])
    assert found.dtype == torch.float64
    assert float(F.cosine_similarity(found, truth, 0)) > 0.995


# ---- changes of z are noticed


def adamw(**options: bool) -> Callable[[SVFAdapter, Expert], None]:
    return lambda adapter, expert: torch.optim.AdamW(adapter.parameters().values(), lr=0.2, **options).step()


CHANGES: dict[str, Callable[[SVFAdapter, Expert], object]] = {
    "AdamW, foreach": adamw(foreach=True),
    "AdamW, fused": adamw(fused=True),
    "AdamW, one by one": adamw(foreach=False),
    "load_state": lambda adapter, expert: adapter.load_state(expert.z),
    "load_expert": lambda adapter, expert: adapter.load_expert(expert),
    "constrain": lambda adapter, expert: adapter.constrain(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_z_is_noticed(tiny_base: Base, adapt: Any, ids: Tensor, random_expert: Any, change: str) -> None:
    with adapt(tiny_base, log_bound=0.1) as adapter:
        adapter.load_expert(random_expert(adapter, 11))
        before = logits(tiny_base, ids)  # builds the merged weights
        loss_of(tiny_base.model(input_ids=ids).logits, ids).backward()
        CHANGES[change](adapter, random_expert(adapter, 12))
        after, with_gradient = logits(tiny_base, ids), tiny_base.model(input_ids=ids).logits
        z = adapter.expert()
    with adapt(tiny_base) as fresh:
        fresh.load_expert(z)
        assert torch.equal(after, logits(tiny_base, ids))
        assert torch.equal(with_gradient, after)
    assert not torch.allclose(after, before, atol=1e-2)


# ---- parametrisations and the trust region


def mask(t: Tensor, s: Tensor) -> Tensor:
    """What the released code does: W' = U diag(s m) Vt * sum(s) / sum(s m) with m = sigmoid(t)."""
    m = 1 / (1 + torch.exp(-t.double()))
    return m * (s.double().sum() / (s.double() * m).sum())


def test_paper_parametrisation(tiny_base: Base, adapt: Any, dense: Any, ids: Tensor, random_expert: Any) -> None:
    factors, before = factorize(tiny_base, ALL), logits(tiny_base, ids)
    shapes = SVFAdapter(tiny_base.model, factors)
    state = {name: z * 3 - 4 for name, z in random_expert(shapes, 13).z.items()}  # logits between -2.5 and 2
    raw = {name: value.double().requires_grad_() for name, value in state.items()}
    z = {name: mask(value, factors[name].s) for name, value in raw.items()}
    truth = dense(tiny_base, plain(factors, z))(ids)
    loss_of(truth, ids).backward()
    with adapt(tiny_base, parametrisation="paper", log_bound=0.1) as adapter:
        close(logits(tiny_base, ids), before, 1e-4)
        adapter.load_state(state)
        scores = tiny_base.model(input_ids=ids).logits
        close(scores, truth, 1e-4)
        loss_of(scores, ids).backward()
        for name, parameter in adapter.raw.items():
            close(parameter.grad, raw[name].grad, 1e-3)
            close(adapter.expert().z[name], z[name], 1e-6)
        adapter.constrain()
        assert all(torch.equal(adapter.raw[name], value) for name, value in state.items()), "the bound is on z, not on logits"
        expert = adapter.expert()
        with pytest.raises(ValueError, match="paper"):
            adapter.load_expert(expert)
    with adapt(tiny_base) as direct:  # an expert file holds the effective z, so it needs no parametrisation
        direct.load_expert(expert)
        assert torch.equal(logits(tiny_base, ids), scores)


@pytest.mark.parametrize("bound", [0.7, 0.01, 3.0])
def test_log_bound(tiny_base: Base, bound: float) -> None:
    adapter = SVFAdapter(tiny_base.model, factorize(tiny_base, "mlp"), log_bound=bound)
    values = torch.tensor([-1.0, 0.0, 1e-9, 0.3, 0.9999, 1.0, 1.005, 2.5, 50.0])
    with torch.no_grad():
        for raw in adapter.parameters().values():
            raw[:9] = values
    adapter.constrain()
    for raw in adapter.parameters().values():
        logs = raw.detach().log()
        assert float(logs.abs().max()) <= bound + 1e-6
        inside = values.log().abs() < bound
        assert torch.equal(raw[:9][inside], values[inside])
        assert torch.equal((logs[:9] < 0)[~inside], (values < 1)[~inside])


def test_no_bound(tiny_base: Base) -> None:
    adapter = SVFAdapter(tiny_base.model, factorize(tiny_base, "mlp"), log_bound=None)
    adapter.load_state({name: raw.detach() * 1e6 for name, raw in adapter.raw.items()})
    adapter.constrain()
    assert all(bool((raw == 1e6).all()) for raw in adapter.parameters().values())


# ---- state, contexts, mistakes


def test_parameters_start_at_exactly_one_in_float32(typed_base: Base) -> None:
    factors = factorize(typed_base, ALL)
    adapter = SVFAdapter(typed_base.model, factors)
    assert {name: raw.shape for name, raw in adapter.raw.items()} == {name: f.s.shape for name, f in factors.items()}
    assert all(raw.dtype == torch.float32 and raw.requires_grad and bool((raw == 1).all()) for raw in adapter.parameters().values())


def test_state_is_a_copy(tiny_base: Base, random_expert: Any) -> None:
    adapter = SVFAdapter(tiny_base.model, factorize(tiny_base, "mlp"))
    adapter.load_expert(expert := random_expert(adapter, 14))
    state, again = adapter.state(), adapter.expert()
    adapter.load_state({name: torch.ones_like(raw) for name, raw in adapter.raw.items()})
    assert all(torch.equal(state[name], z) and torch.equal(again.z[name], z) for name, z in expert.z.items())
    assert not any(t.requires_grad for t in [*state.values(), *again.z.values()])


def wrong_states(adapter: SVFAdapter) -> dict[str, dict[str, Tensor]]:
    right = {name: raw.detach() * 2 for name, raw in adapter.raw.items()}
    last = list(right)[-1]
    return {
        "missing": {n: t for n, t in right.items() if n != last},
        "extra": {**right, "lm_head": torch.ones(3)},
        "one value for all": {**right, last: torch.ones(1)},
        "longer": {**right, last: torch.ones(len(right[last]) + 1)},
    }


@pytest.mark.parametrize("wrong", ["missing", "extra", "one value for all", "longer"])
def test_a_wrong_state_changes_nothing(tiny_base: Base, wrong: str) -> None:
    adapter = SVFAdapter(tiny_base.model, factorize(tiny_base, "mlp"))
    with pytest.raises(ValueError, match="names or shapes"):
        adapter.load_state(wrong_states(adapter)[wrong])
    with pytest.raises(ValueError, match="names or shapes"):
        adapter.load_expert(Expert(wrong_states(adapter)[wrong]))
    assert all(bool((raw == 1).all()) for raw in adapter.parameters().values())


def test_contexts_nest_and_survive_errors(tiny_base: Base, adapt: Any, ids: Tensor, random_expert: Any) -> None:
    before = logits(tiny_base, ids)
    with adapt(tiny_base) as adapter:
        adapter.load_expert(random_expert(adapter, 15))
        adapted = logits(tiny_base, ids)
        with adapter.disabled():
            with pytest.raises(RuntimeError, match="inside"), adapter.disabled():
                raise RuntimeError("inside")
            assert torch.equal(logits(tiny_base, ids), before)
        assert torch.equal(logits(tiny_base, ids), adapted)
        half = Expert(dict(list(random_expert(adapter, 16).z.items())[:3]))
        with pytest.raises(KeyError), adapter.per_row([half] * 3):
            pass
        assert torch.equal(logits(tiny_base, ids), adapted)
        with adapter.per_row([None] * 3):
            with adapter.per_row([random_expert(adapter, 16)] * 3):
                assert not torch.equal(logits(tiny_base, ids), before)
            assert torch.equal(logits(tiny_base, ids), before)


def test_per_row_takes_one_expert_for_each_row(tiny_base: Base, adapt: Any, ids: Tensor, random_expert: Any) -> None:
    with adapt(tiny_base) as adapter:
        for count in (1, 2, 4):
            with adapter.per_row([random_expert(adapter, 17)] * count), pytest.raises(ValueError, match=f"{count} experts.*3 rows"):
                logits(tiny_base, ids)


def test_any_linear_layer_can_be_adapted(tiny_base: Base, adapt: Any, ids: Tensor) -> None:
    """The head too, which `Base.logits` finds under its own name."""
    before = tiny_base.logits(tiny_base.hidden(ids))
    with adapt(tiny_base, targets="lm_head") as adapter:
        assert torch.equal(tiny_base.logits(tiny_base.hidden(ids)), before)
        (raw,) = adapter.parameters().values()
        with torch.no_grad():
            raw.fill_(math.e)
        close(tiny_base.logits(tiny_base.hidden(ids)), before * math.e, 1e-5)


def test_factors_are_a_plain_record() -> None:
    """The adapter works with any factors, for instance ones made by hand."""
    layer = torch.nn.Linear(2, 2, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    model = torch.nn.ModuleDict({"only": layer})
    adapter = SVFAdapter(model, {"only": Factors(torch.eye(2), torch.tensor([3.0, 1.0]), torch.eye(2))})
    adapter.install()
    adapter.load_state({"only": torch.tensor([2.0, -1.0])})
    torch.testing.assert_close(model["only"](torch.tensor([[1.0, 10.0]])), torch.tensor([[6.0, -10.0]]))


def test_figures_describe_z_over_all_matrices(tiny_base: Base) -> None:
    factors = factorize(tiny_base, "mlp")
    adapter = SVFAdapter(tiny_base.model, factors)
    n = sum(len(f.s) for f in factors.values())
    with torch.no_grad():
        raw = next(iter(adapter.raw.values()))
        raw[0], raw[1] = 2.0, 0.25
    figures = adapter.figures()
    assert figures["z_mean"] == pytest.approx(1 + (1 - 0.75) / n)
    assert figures["z_move"] == pytest.approx(((1 + 0.75**2) / n) ** 0.5)
    assert figures["z_max_log"] == pytest.approx(1.3862944)  # log 4
    assert adapter.penalty() is None
