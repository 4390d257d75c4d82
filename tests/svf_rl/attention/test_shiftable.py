"""Specialists and their gate: the formula, adding and removing, labels, priors, and the block for encoders."""

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svf_rl.adapters import make_adapter
from svf_rl.attention import geometry, shiftable
from svf_rl.attention.block import ShiftableTransformerBlock
from svf_rl.attention.host import Call
from svf_rl.attention.shiftable import KeysValues, Pool, ShiftableConfig, add_specialist, labelled, prior, remove_specialist
from svf_rl.base.load import Base
from svf_rl.errors import BaseError, UserError


@torch.no_grad()
def logits(base: Base, ids: Tensor) -> Tensor:
    out: Tensor = base.model(input_ids=ids).logits
    return out


def shut(adapter: Any, *specialists: int) -> Tensor:
    """A log prior that leaves nothing to these specialists."""
    row = torch.zeros(1, 1 + adapter.config.specialists)
    row[0, [1 + k for k in specialists]] = -1e4
    return row


@pytest.mark.parametrize("keys_values", KeysValues)
@torch.no_grad()
def test_the_formula(keys_values: KeysValues, backends: dict[str, Base], adapt: Any) -> None:
    """Y = B + sum g (S - B) with each S written out: the base's attention with merged weights."""
    base, ids = backends["llama-sdpa"], torch.arange(14).view(2, 7)
    adapter = adapt(base, ShiftableConfig(specialists=2, keys_values=keys_values))
    host, patch = next(iter(adapter.hosts.values())), next(iter(adapter.patches.values()))
    host.looking = True
    seen: dict[str, Any] = {}
    hook = host.register_forward_hook(lambda m, args, kw, out: seen.update(kw=kw, out=out[0]), with_kwargs=True)
    base.model(input_ids=ids)
    hook.remove()
    host.looking = False
    gates, module = host.take().gates, host.base
    host.detach()
    plain = {k: v for k, v in seen["kw"].items() if k != "past_key_values"}
    truth = b = module(**plain)[0]
    for k, one in enumerate(patch.specialists):
        own = {"q_proj": "query", "o_proj": "out"}
        own |= {"k_proj": "key", "v_proj": "value"} if keys_values == KeysValues.own else {}
        changed = {
            f"{theirs}.weight": getattr(module, theirs).weight + getattr(one, f"{ours}_up") @ getattr(one, f"{ours}_down")
            for theirs, ours in own.items()
        }
        truth = truth + gates[..., k + 1 : k + 2] * (torch.func.functional_call(module, changed, (), plain)[0] - b)
    host.attach()
    assert torch.allclose(seen["out"], truth, rtol=1e-4, atol=1e-4)


def test_a_shut_gate_is_the_base_exactly(backends: dict[str, Base], adapt: Any, ids: Tensor) -> None:
    base = backends["qwen2-sdpa"]
    before = logits(base, ids)
    adapter = adapt(base, ShiftableConfig(specialists=2))
    with prior(adapter, shut(adapter, 0, 1)):
        assert torch.equal(logits(base, ids), before)
    assert not torch.allclose(logits(base, ids), before, atol=0.05)


@pytest.mark.parametrize(("specialists", "top_k"), [(1, 1), (5, 2), (50, 3)])
def test_top_k_reads_with_no_more(specialists: int, top_k: int, backends: dict[str, Base], adapt: Any, ids: Tensor) -> None:
    base = backends["llama-sdpa"]
    adapter = adapt(base, ShiftableConfig(specialists=specialists, rank=2, top_k=top_k))
    with torch.no_grad():
        _, gates = adapter.look(ids, return_gates=True)
    for layer in gates:
        assert bool(((layer[..., 1:] > 0).sum(-1) == top_k).all())
        assert torch.allclose(layer.sum(-1), torch.ones(3, 11))
    state = adapter.state()
    adapter.uninstall()
    whole = adapt(base, ShiftableConfig(specialists=specialists, rank=2))
    whole.load_state(state)
    with torch.no_grad():
        _, every = whole.look(ids, return_gates=True)
    kept = every[0] * (gates[0] > 0)
    assert torch.allclose(kept / kept.sum(-1, keepdim=True), gates[0], atol=1e-5)
    best = every[0][..., 1:].topk(top_k).indices
    assert torch.equal(best.sort(-1).values, gates[0][..., 1:].topk(top_k).indices.sort(-1).values)


@pytest.mark.parametrize(("specialists", "top_k", "calls"), [(5, 2, 3), (50, 1, 2), (5, None, 6)])
def test_a_token_costs_as_many_readings_as_it_has_specialists(
    specialists: int,
    top_k: int | None,
    calls: int,
    backends: dict[str, Base],
    adapt: Any,
    ids: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Calls of the base's attention in each layer: its own, and one for each turn."""
    base, made = backends["llama-sdpa"], []
    adapter = adapt(base, ShiftableConfig(specialists=specialists, rank=2, top_k=top_k))
    attention = Call.attention
    monkeypatch.setattr(Call, "attention", lambda call, *args: made.append(1) or attention(call, *args))
    logits(base, ids)
    assert len(made) == calls * len(adapter.patches)


@pytest.mark.parametrize("pool", [Pool.token, Pool.causal_mean])
@torch.no_grad()
def test_keys_of_their_own_that_are_the_bases(pool: Pool, backends: dict[str, Base], adapt: Any, ids: Tensor) -> None:
    """Each token reads with its own two specialists in turn, or all tokens with each specialist: the same, where keys are."""
    base, config = backends["qwen2-sdpa"], ShiftableConfig(specialists=5, rank=2, top_k=2, pool=pool)
    shared = adapt(base, config)
    found, state = logits(base, ids), shared.state()
    shared.uninstall()
    own = adapt(base, replace(config, keys_values=KeysValues.own))
    extra = {name: torch.zeros_like(t) for name, t in own.state().items() if "key_" in name or "value_" in name}
    own.load_state(state | extra)
    torch.testing.assert_close(logits(base, ids), found, rtol=0, atol=1e-4)
    assert len(extra) == 4 * 5 * len(own.patches)


@pytest.mark.parametrize("keys_values", KeysValues)
def test_adding_and_removing_leave_the_others(keys_values: KeysValues, backends: dict[str, Base], adapt: Any, ids: Tensor) -> None:
    base = backends["qwen2-sdpa"]
    adapter = adapt(base, ShiftableConfig(specialists=2, keys_values=keys_values))
    before, state = logits(base, ids), adapter.state()
    adapter.uninstall()
    grown = add_specialist(base, adapter)
    grown.install()
    with prior(grown, shut(grown, 2)):
        assert torch.allclose(logits(base, ids), before, atol=1e-4)
    optimizer = torch.optim.AdamW(grown.parameters().values(), lr=0.1, weight_decay=0.0)
    base.model(input_ids=ids).logits.square().mean().backward()
    optimizer.step()
    assert all(torch.equal(grown.state()[name], tensor) for name, tensor in state.items())
    grown.uninstall()
    for fewer, kept in ((remove_specialist(base, grown, 2), state), (remove_specialist(base, adapter, 0), None)):
        fewer.install()
        if kept is None:
            found = logits(base, ids)
            fewer.uninstall()
            adapter.install()
            with prior(adapter, shut(adapter, 0)):
                assert torch.allclose(logits(base, ids), found, atol=1e-4)
        else:
            assert torch.equal(logits(base, ids), before)
            fewer.uninstall()


@pytest.mark.parametrize(("top_k", "left"), [(2, 2), (3, 3), (4, 3)])
def test_without_one_tokens_read_with_as_many_as_before(top_k: int, left: int, tiny_base: Base, adapt: Any, ids: Tensor) -> None:
    """Or with all that are left: what the whole reads with while the fourth is shut off."""
    adapter = adapt(tiny_base, ShiftableConfig(specialists=4, rank=2, top_k=top_k))
    with prior(adapter, shut(adapter, 3)):
        truth = logits(tiny_base, ids)
    adapter.uninstall()
    fewer = remove_specialist(tiny_base, adapter, 3)
    assert fewer.config.top_k == left
    fewer.install()
    try:
        torch.testing.assert_close(logits(tiny_base, ids), truth, rtol=0, atol=1e-4)
    finally:
        fewer.uninstall()


def test_a_label_forces_the_gate_and_teaches_it(backends: dict[str, Base], adapt: Any, ids: Tensor) -> None:
    base = backends["llama-sdpa"]
    adapter = adapt(base, ShiftableConfig(specialists=2), stirred=False)
    with labelled(adapter, 2):
        _, gates = adapter.look(ids, return_gates=True)
        assert torch.allclose(gates[0][..., 2], torch.full((3, 11), shiftable.FORCED))
        optimizer = torch.optim.AdamW(adapter.parameters().values(), lr=0.05, weight_decay=0.0)
        for _ in range(20):
            base.model(input_ids=ids)
            adapter.penalty().backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        _, gates = adapter.look(ids, return_gates=True)
    assert float(gates[0][..., 2].mean()) > 0.8


def test_regularisers_are_finite_where_a_gate_is_zero() -> None:
    scores = torch.tensor([[0.0, 1.0, -torch.inf]], requires_grad=True)
    value = shiftable.entropy(scores.softmax(-1)).sum()
    value.backward()
    assert bool(value.isfinite())
    assert scores.grad is not None
    assert bool(scores.grad.isfinite().all())
    assert float(value.detach()) == pytest.approx(float(torch.distributions.Bernoulli(logits=torch.ones(())).entropy()), rel=1e-5)


def test_pools_that_would_leak_are_refused(tiny_base: Base, architectures: dict[str, Base]) -> None:
    with pytest.raises(BaseError, match="what follows"):
        make_adapter(tiny_base, ShiftableConfig(pool=Pool.sequence))
    with pytest.raises(BaseError, match="sliding window"):
        make_adapter(architectures["mistral"], ShiftableConfig(pool=Pool.prompt))
    with pytest.raises(UserError, match="top_k"):
        ShiftableConfig(top_k=2)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("pool", [Pool.token, Pool.causal_mean, Pool.sequence])
def test_the_block_stands_in_for_a_layer(norm_first: bool, batch_first: bool, pool: Pool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, "gelu", norm_first=norm_first, batch_first=batch_first)
    block = ShiftableTransformerBlock.from_layer(layer, 2, pool=pool)
    x = torch.randn(3, 5, 16) if batch_first else torch.randn(5, 3, 16)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    calls: list[dict[str, Any]] = [{}, {"src_key_padding_mask": padding}]
    calls += [{"src_mask": causal, "is_causal": True}] if pool != Pool.sequence else []
    for training in (True, False):
        layer.train(training)
        block.train(training)
        for options in calls:
            assert torch.allclose(block(x, **options), layer(x, **options), atol=1e-6)
    out, gates = block(x, return_gates=True)
    out.square().mean().backward()
    assert gates.shape == (*x.shape[:2], 3)
    assert block.query_up.grad is not None
    assert all(p.grad is None for p in block.layer.parameters())
    encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    assert encoder(x, src_key_padding_mask=padding).shape == x.shape
    with torch.no_grad():
        for parameter in (block.query_up, block.out_up, block.gate):
            parameter.normal_()
        if pool != Pool.sequence:
            before = block(x, src_mask=causal, is_causal=True)
            changed = x.clone()
            changed[(slice(None), 4) if batch_first else 4] = torch.randn(3, 16)
            after = block(changed, src_mask=causal, is_causal=True)
            past = (slice(None), slice(4)) if batch_first else slice(4)
            assert torch.allclose(after[past], before[past], atol=1e-6)
        else:
            with pytest.raises(ValueError, match="what follows"):
                block(x, src_mask=causal)


@pytest.mark.parametrize("norm_first", [True, False])
def test_specialists_and_base_drop_the_same(norm_first: bool) -> None:
    """While it trains with dropout the untrained block is the layer without dropout inside its frozen attention, under any gate."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, 0.5, norm_first=norm_first)
    block = ShiftableTransformerBlock.from_layer(layer, 2).train()
    layer.self_attn.dropout = 0.0
    x, found = torch.randn(5, 3, 16), []
    for one in (layer, block):
        torch.manual_seed(1)
        found.append(one(x))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("pool", [Pool.token, Pool.causal_mean, Pool.sequence])
def test_a_sequence_without_a_batch_is_a_batch_of_one(batch_first: bool, pool: Pool) -> None:
    torch.manual_seed(0)
    block = ShiftableTransformerBlock(16, 4, 32, 0.0, batch_first=batch_first, specialists=2, pool=pool)
    for parameter in (block.query_up, block.out_up, block.gate):
        nn.init.normal_(parameter)
    x, padding = torch.randn(5, 16), torch.tensor([False, False, False, True, True])
    batch = 0 if batch_first else 1
    for mask in (None, padding):
        together = block(x.unsqueeze(batch), src_key_padding_mask=None if mask is None else mask[None]).squeeze(batch)
        torch.testing.assert_close(block(x, src_key_padding_mask=mask), together)


@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_the_block_has_the_signature_of_a_layer(method: str) -> None:
    """Names, order, kinds and defaults; what the block has beyond them comes after, and may be left out."""
    theirs, ours = (
        list(inspect.signature(getattr(kind, method)).parameters.values())
        for kind in (nn.TransformerEncoderLayer, ShiftableTransformerBlock)
    )
    said = [[(p.name, p.kind, p.default) for p in some] for some in (theirs, ours[: len(theirs)])]
    assert said[0] == said[1]
    assert all(p.default is not p.empty for p in ours[len(theirs) :])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("pool", [Pool.token, Pool.causal_mean, Pool.sequence])
def test_a_padding_mask_of_numbers_is_one_of_truth_values(batch_first: bool, pool: Pool) -> None:
    """As the layer's at the start; and once the block is trained, where the gates too must leave padding out."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=batch_first)
    block = ShiftableTransformerBlock.from_layer(layer, 2, pool=pool)
    x = torch.randn(3, 5, 16) if batch_first else torch.randn(5, 3, 16)
    padding = torch.arange(5) >= torch.tensor([[5], [3], [2]])
    added = torch.zeros(3, 5).masked_fill(padding, -torch.inf)
    assert torch.allclose(block(x, src_key_padding_mask=added), layer(x, src_key_padding_mask=added), atol=1e-6)
    with torch.no_grad():
        for parameter in (block.query_up, block.out_up, block.gate):
            parameter.normal_()
    found, gates = block(x, src_key_padding_mask=added, return_gates=True)
    truth, expected = block(x, src_key_padding_mask=padding, return_gates=True)
    torch.testing.assert_close((found, gates), (truth, expected))
    changed = torch.where(padding[..., None], torch.randn(3, 5, 16), x if batch_first else x.transpose(0, 1))
    other = block(changed if batch_first else changed.transpose(0, 1), src_key_padding_mask=added)
    real = ~padding if batch_first else ~padding.T
    torch.testing.assert_close(other[real], found[real])


def test_the_geometry_knows_domains_and_what_is_none() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 60, 8, generator=generator, dtype=torch.float64)
    domains = [noise[0] + 4, noise[1] - 4]
    found = geometry.calibrate(geometry.fit([d[:40] for d in domains]), torch.cat([d[40:] for d in domains]))
    queries = torch.stack([domains[0][50], domains[1][50], torch.full((8,), 40.0, dtype=torch.float64)])
    assert found.unknown(queries).tolist() == [False, False, True]
    chances = found.log_prior(queries).softmax(-1)
    assert chances.argmax(-1)[2] == 0
    assert chances[2, 0] > 0.999
    assert chances[0, 1] > 100 * chances[0, 2]
    assert chances[1, 2] > 100 * chances[1, 1]


def test_the_shrunk_covariance_is_nearer_the_truth() -> None:
    """Of 10 rows in 20 dimensions: the sample's own cannot be inverted, and is further from the true one."""
    rows = torch.randn(10, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth, shrunk = torch.eye(20, dtype=torch.float64), geometry.shrunk_covariance(rows)
    assert float((shrunk - truth).norm()) < float((rows.T @ rows / 10 - truth).norm()) / 2
    assert bool(torch.linalg.eigvalsh(shrunk).min() > 0.1)


def test_the_prior_of_branches_is_the_posterior_of_normal_domains() -> None:
    """By torch's own densities, equal chances before; what is known to neither is the base's."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 50, 3, generator=generator, dtype=torch.float64) + torch.tensor([[[0.0]], [[1.5]]], dtype=torch.float64)
    found = geometry.calibrate(geometry.fit(list(rows)), rows.flatten(0, 1), 1.0)
    normal = torch.distributions.MultivariateNormal(found.centres, precision_matrix=found.precision)
    truth = normal.log_prob(rows.flatten(0, 1)[:, None]).log_softmax(-1)
    torch.testing.assert_close(found.branch_prior(rows.flatten(0, 1)), truth)
    assert found.branch_prior(torch.full((1, 3), 50.0, dtype=torch.float64)).tolist() == [[0.0, geometry.SHUT]]


def test_prefixes_are_means_over_first_tokens() -> None:
    hidden = torch.randn(4, 9, 5, generator=torch.Generator().manual_seed(0))
    found = geometry.prefixes(hidden, [1, 4, 9, 16])
    torch.testing.assert_close(found, torch.stack([hidden[:, :n].mean(1) for n in (1, 4, 9)], 1))
