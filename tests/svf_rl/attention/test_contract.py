"""What every attention module promises, of every architecture and backend: identity, causality, cache, files, padding."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.cache_utils import DynamicCache, StaticCache

from svf_rl.adapter import Adapter
from svf_rl.adapters import make_adapter, open_adapter, save_adapter
from svf_rl.base.load import Base, fingerprint
from svf_rl.errors import BaseError, ExpertError
from svf_rl.rollout.sampler import Sampling, sample

TOLERANCE = 2e-4  # of logits of size 10 in float32, between two orders of the same sums
EXACT = ("shiftable", "gated")  # and the multiplicative and nonlinear forms of selective: see test_untrained_is_the_base


@torch.no_grad()
def logits(base: Base, ids: Tensor, **kwargs: Any) -> Tensor:
    out: Tensor = base.model(input_ids=ids, **kwargs).logits
    return out


def close(a: Tensor, b: Tensor, tolerance: float = TOLERANCE) -> None:
    error = float((a.double() - b.double()).abs().max() / b.abs().max().clamp(min=1))
    assert error < tolerance, f"relative error {error:.2e}"


def test_untrained_is_the_base(base: Base, config: Any, adapt: Any, ids: Tensor) -> None:
    """Bit for bit where nothing is added to the scores; else to a part in a million: a bias may choose another kernel."""
    padded = torch.ones_like(ids).index_put((torch.tensor([1, 1]), torch.tensor([0, 1])), torch.tensor(0))
    before = [logits(base, ids), logits(base, ids, attention_mask=padded)]
    adapter = adapt(base, config, stirred=False)
    assert isinstance(adapter, Adapter)
    real = padded.bool()
    after = [logits(base, ids), logits(base, ids, attention_mask=padded)]
    if config.name in EXACT or getattr(config, "form", None) in ("multiplicative", "nonlinear"):
        assert torch.equal(after[0], before[0])
        assert torch.equal(after[1][real], before[1][real])
    else:
        close(after[0], before[0], 1e-6)
        close(after[1][real], before[1][real], 1e-6)
    base.model(input_ids=ids).logits.square().mean().backward()
    assert any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in adapter.parameters().values())


def test_changing_a_token_changes_no_logits_before_it(base: Base, config: Any, adapt: Any, ids: Tensor) -> None:
    adapter = adapt(base, config)
    before = logits(base, ids)
    with adapter.disabled():
        assert not torch.allclose(before, logits(base, ids), atol=0.05), "nothing would be tested"
    for t in (1, 5, 10):
        changed = ids.clone()
        changed[:, t] = (ids[:, t] + torch.tensor([3, 71, 150])) % 290
        after = logits(base, changed)
        assert torch.allclose(after[:, :t], before[:, :t], atol=1e-6, rtol=0)
        assert not torch.allclose(after[:, t:], before[:, t:], atol=1e-3)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_chunks_through_a_cache_are_the_whole(base: Base, config: Any, adapt: Any, ids: Tensor, chunk: int) -> None:
    adapt(base, config)
    whole, cache = logits(base, ids), DynamicCache()
    pieces = [logits(base, ids[:, :4], past_key_values=cache)]
    pieces += [logits(base, part, past_key_values=cache) for part in ids[:, 4:].split(chunk, 1)]
    close(torch.cat(pieces, 1), whole)


def test_a_static_cache_is_the_whole(base: Base, config: Any, adapt: Any, ids: Tensor) -> None:
    """With room for more than is written, so that a first chunk has no mask and keys after its own."""
    adapt(base, config)
    whole, cache = logits(base, ids), StaticCache(config=base.model.config, max_cache_len=17)
    close(torch.cat([logits(base, part, past_key_values=cache) for part in ids.split([4, 3, 1, 1, 2], 1)], 1), whole)


@pytest.mark.parametrize("left", [True, False])
def test_pieces_are_the_whole(base: Base, config: Any, adapt: Any, ids: Tensor, pieces: Any, left: bool) -> None:
    """Of rows and of queries; of a batch with padding that comes through a cache in two chunks, masks included."""
    adapter = adapt(base, config)
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    mask = mask if left else mask.flip(1)

    def chunks() -> tuple[Tensor, list[Tensor]]:
        cache, kinds = DynamicCache(), sorted(shown(base, config))
        asked = {f"return_{kind}": True for kind in kinds}
        logits(base, ids[:, :2], attention_mask=mask[:, :2], past_key_values=cache)
        with torch.no_grad():
            scores, *found = adapter.look(ids[:, 2:], attention_mask=mask, past_key_values=cache, **asked)
        return scores, [t for kind, tensors in zip(kinds, found, strict=True) for t in tensors if kind == "masks"]

    scores, masks = chunks()
    pieces(1 << 20, 1 << 40)
    whole, whole_masks = chunks()
    close(scores[mask[:, 2:].bool()], whole[mask[:, 2:].bool()])
    past = (torch.ones(9, 11).tril(2) * mask[:, None])[:, None] * mask[:, 2:, None][:, None]
    for mine, other in zip(masks, whole_masks, strict=True):
        close(mine * past, other * past)


def test_a_gradient_changes_no_logits(base: Base, config: Any, adapt: Any, ids: Tensor, no_noise: None) -> None:
    """With one, everything is made at once; without, in pieces and without a logarithm or a difference."""
    adapt(base, config)
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    learning = base.model(input_ids=ids, attention_mask=mask).logits
    close(logits(base, ids, attention_mask=mask)[mask.bool()], learning.detach()[mask.bool()])


def test_a_cache_can_be_cropped_reordered_and_repeated(base: Base, config: Any, adapt: Any, ids: Tensor) -> None:
    adapt(base, config)
    cache = DynamicCache()
    logits(base, ids, past_key_values=cache)
    cache.crop(-4)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3]))
    close(logits(base, ids[[2, 0], 7:], past_key_values=cache), logits(base, ids[[2, 0]])[:, 7:])


def test_padded_rows_are_rows_alone(base: Base, config: Any, adapt: Any, ids: Tensor) -> None:
    adapt(base, config)
    for left in (True, False):
        mask = torch.ones_like(ids)
        mask[1, :4] = 0
        mask[2, :7] = 0
        mask = mask if left else mask.flip(1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        together = logits(base, ids, attention_mask=mask, position_ids=positions)
        for row, own, found in zip(ids, mask.bool(), together, strict=True):
            close(found[own], logits(base, row[own][None])[0])


def test_our_sampler_writes_what_the_whole_forward_says(base: Base, config: Any, adapt: Any, stopping: Any, ids: Tensor) -> None:
    """Greedy: of rows of several lengths, more than fit at a time. The log-probabilities are those of the whole text."""
    adapt(base, config)
    base = stopping(base, {3})
    prompts = [ids[0, :5].tolist(), ids[1].tolist(), ids[0, :5].tolist(), ids[2, :2].tolist()]
    for prompt, completion in zip(prompts, sample(base, prompts, Sampling(6, 0.0, rows=2), range(4)), strict=True):
        text = torch.tensor(prompt + completion.ids)
        scores = logits(base, text[None])[0, len(prompt) - 1 : -1].log_softmax(-1)
        found = scores.gather(1, text[len(prompt) :, None])[:, 0]
        close(torch.tensor(completion.logprobs), found)
        assert torch.allclose(found, scores.max(-1).values, atol=1e-3), "each token is the likeliest"


def test_generation_by_beams_is_the_same_with_and_without_a_cache(base: Base, config: Any, adapt: Any, ids: Tensor) -> None:
    adapt(base, config)
    options = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with_cache, without = (base.model.generate(ids, attention_mask=mask, use_cache=c, **options) for c in (True, False))
    assert torch.equal(with_cache, without)


def test_detaching_leaves_the_base(base: Base, config: Any, adapt: Any, ids: Tensor) -> None:
    model = base.model

    def tree() -> list[tuple[str, int]]:
        return [(n, id(part)) for n, part in [*model.named_modules(), *model.named_parameters(), *model.named_buffers()]]

    before, scores, parameters = tree(), logits(base, ids), {id(p) for p in model.parameters()}
    adapter = adapt(base, config)
    assert not torch.equal(logits(base, ids), scores)
    assert {id(p) for p in model.parameters()} == parameters, "the adapter's parameters are not the base's"
    optimizer = torch.optim.AdamW(adapter.parameters().values(), lr=0.01, weight_decay=0.0)
    model(input_ids=ids).logits.square().mean().backward()
    optimizer.step()
    adapter.constrain()
    with adapter.disabled():
        assert torch.equal(logits(base, ids), scores)
    adapter.uninstall()
    assert tree() == before
    assert fingerprint(model) == base.fingerprint
    assert torch.equal(logits(base, ids), scores)
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    adapter.install()


def test_gradients_pass_through_the_base(base: Base, config: Any, adapt: Any, ids: Tensor, no_noise: None) -> None:
    """Untrained, the model is the base as a function of its input: so are its derivatives."""

    def slope() -> Tensor:
        x = base.model.get_input_embeddings()(ids).detach().requires_grad_()
        base.model(inputs_embeds=x).logits.square().mean().backward()
        assert x.grad is not None
        return x.grad

    before = slope()
    adapt(base, config, stirred=False)
    close(slope() / before.abs().max(), before / before.abs().max(), 1e-4)


def test_files_keep_an_adapter(base: Base, config: Any, adapt: Any, ids: Tensor, tmp_path: Path) -> None:
    adapter, path = adapt(base, config), tmp_path / "expert.safetensors"
    about = dict.fromkeys(("base", "environment", "command", "revision"), "x") | {"fingerprint": base.fingerprint, "metrics": {}}
    save_adapter(path, adapter, config, about)
    scores = logits(base, ids)
    adapter.uninstall()
    again, found = open_adapter(path, base)
    assert found["adapter"] == config.name
    assert {n: t.tolist() for n, t in again.state().items()} == {n: t.tolist() for n, t in adapter.state().items()}
    again.install()
    assert torch.equal(logits(base, ids), scores)
    again.uninstall()
    save_adapter(path, adapter, config, {**about, "fingerprint": "other"})
    with pytest.raises(ExpertError, match="fingerprint"):
        open_adapter(path, base)
    adapter.install()


def test_a_state_is_taken_whole_or_not_at_all(base: Base, config: Any, adapt: Any) -> None:
    adapter = adapt(base, config)
    before = adapter.state()
    name = next(reversed(before))
    for wrong in ({}, {**before, "other": torch.zeros(1)}, {**before, name: torch.zeros(*before[name].shape, 1)}):
        with pytest.raises(ValueError, match="names or shapes"):
            adapter.load_state({n: t + 1 for n, t in wrong.items()})
    assert all(torch.equal(t, before[n]) for n, t in adapter.state().items())


def test_penalties_ignore_padding_and_the_future(base: Base, config: Any, adapt: Any, ids: Tensor) -> None:
    """The penalty and the figures of a padded row are those of the row alone, whatever stands in the padding, on either side."""
    adapter = adapt(base, config)
    base.model(input_ids=ids[:1, :6])
    alone = adapter.penalty()
    figures = adapter.figures()
    if alone is not None:
        assert alone.requires_grad
    for left in (True, False):
        mask = torch.zeros(1, 11, dtype=torch.long)
        padded = ids[1:2].clone()
        where = slice(5, 11) if left else slice(0, 6)
        mask[:, where], padded[:, where] = 1, ids[:1, :6]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        base.model(input_ids=padded, attention_mask=mask, position_ids=positions)
        found = adapter.penalty()
        assert (found is None) == (alone is None)
        if alone is not None and found is not None:
            close(found.detach(), alone.detach())
        assert adapter.figures() == pytest.approx(figures, rel=1e-4, abs=1e-5)


def test_figures_of_pairs_are_means_over_the_past(base: Base, config: Any, adapt: Any, ids: Tensor, no_noise: None) -> None:
    """Of what `look` shows, summed pair by pair over the keys that a query sees; a penalty on it is that mean times its weight."""
    if "masks" not in shown(base, config) or config.name == "selective":
        pytest.skip("this form measures no pairs")
    adapter = adapt(base, config)
    _, layers = adapter.look(ids, return_masks=True)
    past = [(i, j) for i in range(11) for j in range(i + 1)]
    means = [float(sum(layer[:, :, i, j].detach().mean() for i, j in past)) / len(past) for layer in layers]
    base.model(input_ids=ids)
    truth = sum(means) / len(means)
    assert adapter.figures()["mask_mean"] == pytest.approx(truth, rel=1e-4)
    if getattr(config, "openness", 0.0):
        penalty = adapter.penalty()
        assert penalty is not None
        assert float(penalty.detach()) == pytest.approx(config.openness * truth, rel=1e-4)


def test_no_penalty_without_a_gradient(base: Base, config: Any, adapt: Any, ids: Tensor) -> None:
    """What is kept is that of the last pass of the policy: neither a pass without gradient nor the base's replaces it."""
    adapter = adapt(base, config)
    base.model(input_ids=ids)
    before = adapter.penalty()
    logits(base, ids[:, :3])
    with adapter.disabled():
        base.model(input_ids=ids[:, :3])
    after = adapter.penalty()
    assert (before is None) == (after is None)
    assert before is None or after is None or torch.equal(before, after)


def shown(base: Base, config: Any) -> set[str]:
    """What each module has to show."""
    if config.name == "gated":
        return {"gates"} if config.rank == 0 else {"gates", "masks"}
    if config.name == "selective":
        rotary = base.model.config.model_type != "gpt2"
        return {"multiplicative": {"gates"}, "linear": {"masks"} if rotary else set()}.get(config.form, set())
    return {"gates"} if config.name == "shiftable" else {"masks"}


def test_gates_and_masks_can_be_looked_at(base: Base, config: Any, adapt: Any, ids: Tensor) -> None:
    adapter = adapt(base, config)
    layers, plain = len(adapter.patches), logits(base, ids)
    for word in ("gates", "masks"):
        with torch.no_grad():
            if word not in shown(base, config):
                with pytest.raises(ValueError, match=f"has no {word}"):
                    adapter.look(ids, **{f"return_{word}": True})
                continue
            scores, found = adapter.look(ids, **{f"return_{word}": True})
        assert torch.equal(scores, plain)
        assert len(found) == layers
        for tensor in found:
            assert tensor.shape[:2] == (3, 11) if word == "gates" else tensor.shape[2:] == (11, 11)
            assert bool((tensor >= 0).all())
            assert bool(tensor.isfinite().all())
    assert all(host.take() is None for host in adapter.hosts.values()), "nothing is kept"


def test_other_backends_and_architectures_are_refused_by_name(module: Any, tiny_base: Base, make_base: Any) -> None:
    model = tiny_base.model
    model.config._attn_implementation_internal = "flex_attention"
    try:
        with pytest.raises(BaseError, match="flex_attention"):
            make_adapter(tiny_base, module)
    finally:
        model.config._attn_implementation_internal = "sdpa"
    sizes = {"vocab_size": 300, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 80}
    other = make_base(transformers.GPTNeoXConfig(**sizes, eos_token_id=0, bos_token_id=0, pad_token_id=0))
    with pytest.raises(BaseError, match="GPTNeoX"):
        make_adapter(other, module)


def test_half_precision(module: Any, adapt: Any, converted: Any, tiny_base: Base, ids: Tensor) -> None:
    """In bfloat16 the identity holds as it does in float32, and stirred parameters stay float32."""
    half = converted(tiny_base, torch.bfloat16)
    before = logits(half, ids)
    adapter = adapt(half, module, stirred=False)
    close(logits(half, ids).float(), before.float(), 0.02)
    half.model(input_ids=ids).logits.float().square().mean().backward()
    assert {p.dtype for p in adapter.parameters().values()} == {torch.float32}
    cache = DynamicCache()
    first = logits(half, ids[:, :6], past_key_values=cache)
    close(torch.cat([first, logits(half, ids[:, 6:], past_key_values=cache)], 1).float(), logits(half, ids).float(), 0.05)
