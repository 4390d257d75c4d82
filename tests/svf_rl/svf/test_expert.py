"""An expert file comes back as it was saved or not at all; the algebra does what its formulas say."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from svf_rl.base.load import Base
from svf_rl.errors import ExpertError
from svf_rl.files import write_tensors
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.svf.expert import FORMAT, check_fits, interpolate, load_expert, mix, negate, save_expert, sparsify
from svf_rl.svf.factorize import factorize
from svf_rl.types import Expert

ABOUT: dict[str, Any] = {
    "base": "somewhere/a base",
    "fingerprint": "f" * 32,
    "targets": "attention+mlp",
    "rank": None,
    "parametrisation": "direct",
    "environment": "envs:svf/Math-v0",
    "command": "svf-rl train env=math",
    "revision": "0123456789ab+",
    "metrics": {"expert_accuracy": 0.5, "n_test": 1000, "é": [1, None]},
}
FIELDS = {**{k: v if isinstance(v, str) else json.dumps(v) for k, v in ABOUT.items()}, "format": FORMAT}


def vectors(seed: int) -> dict[str, Tensor]:
    """Values near 1, and some so far from it that 1 + (z - 1) would round."""
    generator = torch.Generator().manual_seed(seed)
    q, up = 1 + torch.randn(7, generator=generator) / 4, 1 + torch.randn(4, generator=generator) / 4
    return {"a.q_proj": torch.cat([q[:5], q[5:] / 30]), "b.up_proj": up}


def expert(seed: int = 0, **about: Any) -> Expert:
    return Expert(vectors(seed), {**ABOUT, **about})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "expert.safetensors"


@pytest.fixture
def content(path: Path) -> bytes:
    """The bytes of a good file, which lies at `path`."""
    save_expert(path, expert())
    return path.read_bytes()


def refused(path: Path, reason: str) -> None:
    """It is an ExpertError of one short line that names the file and the reason."""
    with pytest.raises(ExpertError, match=reason) as caught:
        load_expert(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    assert str(path) in message or reason in message


def same(a: Expert, z: dict[str, Tensor]) -> bool:
    return a.z.keys() == z.keys() and all(torch.equal(a.z[name], z[name]) for name in z)


# ---- the file


def test_round_trip(path: Path) -> None:
    save_expert(path, expert(rank=16))
    loaded = load_expert(path)
    assert same(loaded, vectors(0))
    assert loaded.about == {**ABOUT, "rank": 16, "format": FORMAT}
    assert path.stat().st_size < 2048


def test_round_trip_through_an_adapter(tiny_base: Base, path: Path, random_expert: Callable[..., Expert]) -> None:
    factors = factorize(tiny_base, "mlp")
    adapter = SVFAdapter(tiny_base.model, factors)
    adapter.load_expert(random_expert(adapter, 0))
    save_expert(path, Expert(adapter.expert().z, {**ABOUT, "fingerprint": tiny_base.fingerprint}))
    loaded = load_expert(path)
    check_fits(loaded, tiny_base.fingerprint, {name: f.s for name, f in factors.items()})
    again = SVFAdapter(tiny_base.model, factors)
    again.load_expert(loaded)
    assert all(torch.equal(again.raw[name], raw) for name, raw in adapter.raw.items())


@pytest.mark.parametrize("field", sorted(ABOUT))
def test_an_expert_without_a_history_is_not_kept(path: Path, field: str) -> None:
    about = {key: value for key, value in ABOUT.items() if key != field}
    with pytest.raises(ValueError, match=rf"needs {field}$"):
        save_expert(path, Expert(vectors(0), about))
    assert not path.exists()


def test_other_types_are_stored_as_float32(path: Path) -> None:
    save_expert(path, Expert({"a": torch.tensor([1.0, 0.1], dtype=torch.float64)}, ABOUT))
    assert same(load_expert(path), {"a": torch.tensor([1.0, 0.1])})


# ---- files that are refused


def test_missing_and_unreadable(path: Path, tmp_path: Path) -> None:
    refused(path, "No such file")
    refused(tmp_path, "found")


def test_noise(path: Path) -> None:
    for size in (0, 1, 7, 8, 9, 100, 5000):
        path.write_bytes(os.urandom(size))
        refused(path, "cannot read the expert")


def test_truncated_at_every_seventh_byte(path: Path, content: bytes) -> None:
    for size in [*range(0, len(content), 7), len(content) - 1]:
        path.write_bytes(content[:size])
        refused(path, "cannot read the expert")
    path.write_bytes(content + b"\0")
    refused(path, "cannot read the expert")


def test_every_flipped_byte(path: Path, content: bytes) -> None:
    """Of the header and of the values."""
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 7)
        path.write_bytes(flipped)
        refused(path, "cannot read the expert")


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def test_a_pickle_is_never_executed(path: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "executed"
    pickle.loads(pickle.dumps(Bomb(bomb)))
    assert bomb.exists(), "the bomb works"
    bomb.unlink()
    path.write_bytes(pickle.dumps(Bomb(bomb)))
    refused(path, "cannot read the expert")
    torch.save({"z.a": torch.ones(3), "x": Bomb(bomb)}, path)
    refused(path, "cannot read the expert")
    assert not bomb.exists()


def test_a_foreign_safetensors_file(path: Path) -> None:
    save_file({"model.weight": torch.ones(3)}, path, {"format": "pt"})
    refused(path, "svf-rl did not write")
    write_tensors(path, {"model.weight": torch.ones(3)}, {"format": "pt"})
    refused(path, f"expected format '{FORMAT}', found 'pt'")
    write_tensors(path, {"z.a": torch.ones(3)})
    refused(path, f"expected format '{FORMAT}', found None")
    write_tensors(path, {"z.a": torch.ones(3)}, {**FIELDS, "format": "svf-expert-2"})
    refused(path, "found 'svf-expert-2'")


@pytest.mark.parametrize("field", sorted(ABOUT))
def test_missing_metadata(path: Path, field: str) -> None:
    write_tensors(path, {"z.a": torch.ones(3)}, {key: value for key, value in FIELDS.items() if key != field})
    refused(path, f"lacks the metadata {field};")


@pytest.mark.parametrize("field", ["rank", "metrics"])
def test_damaged_metadata(path: Path, field: str) -> None:
    write_tensors(path, {"z.a": torch.ones(3)}, {**FIELDS, field: "{"})
    with pytest.raises(ExpertError, match=f"'{field}' is damaged"):
        load_expert(path)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "holds no z at all"),
        ({"z.a": torch.ones(2, 3)}, r"z of a must be a float32 vector, found torch.float32 \(2, 3\)"),
        ({"z.a": torch.ones(3, dtype=torch.float64)}, "z of a must be a float32 vector, found torch.float64"),
        ({"z.a": torch.ones(3, dtype=torch.int32)}, "must be a float32 vector"),
        ({"z.a": torch.tensor(1.0)}, "must be a float32 vector"),
        ({"z.a": torch.tensor([1.0, torch.nan])}, "z of a has values that are not finite"),
        ({"z.a": torch.ones(3), "z.b": torch.tensor([-torch.inf])}, "z of b has values that are not finite"),
        ({"z.a": torch.ones(3), "a": torch.ones(3)}, "holds the tensor 'a', expected z.<matrix name>"),
    ],
)
def test_bad_values(path: Path, tensors: dict[str, Tensor], reason: str) -> None:
    write_tensors(path, tensors, FIELDS)
    refused(path, reason)


# ---- experts of another base


def spectra(**sizes: int) -> dict[str, Tensor]:
    return {name.replace("__", "."): torch.ones(size) for name, size in sizes.items()}


FITTING = spectra(a__q_proj=7, b__up_proj=4)


def test_a_fitting_expert() -> None:
    check_fits(expert(), "f" * 32, FITTING)


@pytest.mark.parametrize(
    ("fingerprint", "found", "reason"),
    [
        ("0" * 32, FITTING, "trained on the base 'somewhere/a base'.*load that base"),
        ("f" * 32, {**FITTING, "c": torch.ones(2)}, r"missing \['c'\], extra \[\]; use adapter.targets='attention\+mlp'"),
        ("f" * 32, spectra(a__q_proj=7), r"missing \[\], extra \['b.up_proj'\]"),
        ("f" * 32, {}, r"extra \['a.q_proj', 'b.up_proj'\]"),
        (
            "f" * 32,
            {**FITTING, "b.up_proj": torch.ones(5)},
            r"z of b.up_proj has shape \(4,\), expected \(5,\); use adapter.rank=None",
        ),
    ],
)
def test_an_expert_that_does_not_fit(fingerprint: str, found: dict[str, Tensor], reason: str) -> None:
    with pytest.raises(ExpertError, match=reason) as caught:
        check_fits(expert(), fingerprint, found)
    assert "\n" not in str(caught.value)


# ---- algebra

EXPERTS = [expert(seed) for seed in (1, 2, 3)]


@pytest.mark.parametrize("k", range(3))
def test_a_one_hot_mixture_is_that_expert(k: int) -> None:
    weights = [float(i == k) for i in range(3)]
    assert same(mix(EXPERTS, weights), vectors(k + 1))
    assert same(mix(EXPERTS, dict.fromkeys(EXPERTS[0].z, weights)), vectors(k + 1))


def test_weights_of_zero_are_the_base() -> None:
    assert same(mix(EXPERTS, [0.0, 0.0, 0.0]), {name: torch.ones_like(z) for name, z in vectors(0).items()})


def test_weights_that_sum_to_one_are_the_published_rule() -> None:
    mixed = mix(EXPERTS, [0.5, 0.2, 0.3])
    for name, z in mixed.z.items():
        a, b, c = (vectors(seed)[name] for seed in (1, 2, 3))
        torch.testing.assert_close(z, 0.5 * a + 0.2 * b + 0.3 * c, rtol=0, atol=1e-6)


def test_any_weights() -> None:
    mixed = mix(EXPERTS[:2], [2.0, -0.5])
    for name, z in mixed.z.items():
        a, b = (vectors(seed)[name] for seed in (1, 2))
        torch.testing.assert_close(z, 1 + 2 * (a - 1) - 0.5 * (b - 1), rtol=0, atol=1e-6)


def test_weights_by_matrix() -> None:
    mixed = mix(EXPERTS[:2], {"a.q_proj": [1.0, 0.0], "b.up_proj": [0.25, 0.75]})
    assert torch.equal(mixed.z["a.q_proj"], vectors(1)["a.q_proj"])
    torch.testing.assert_close(mixed.z["b.up_proj"], 0.25 * vectors(1)["b.up_proj"] + 0.75 * vectors(2)["b.up_proj"])


def test_the_order_of_experts_does_not_matter() -> None:
    forth, back = mix(EXPERTS, [0.5, 0.2, 0.3]), mix(EXPERTS[::-1], [0.3, 0.2, 0.5])
    assert all(torch.allclose(forth.z[name], back.z[name], rtol=0, atol=1e-6) for name in forth.z)


def test_a_result_shares_no_memory() -> None:
    source = expert(1)
    for result in (mix([source], [1.0]), sparsify(source, 1.0), interpolate(source, 1.0)):
        for z in result.z.values():
            z.zero_()
    assert same(source, vectors(1))


@pytest.mark.parametrize(
    ("experts", "weights"),
    [
        ([], []),
        (EXPERTS, [0.5, 0.5]),
        (EXPERTS, [0.5, 0.5, 0.0, 0.0]),
        (EXPERTS, [0.5, 0.5, float("nan")]),
        (EXPERTS, [0.5, 0.5, float("inf")]),
        (EXPERTS, {"a.q_proj": [1.0, 0.0, 0.0]}),
        (EXPERTS, {"a.q_proj": [1.0, 0.0, 0.0], "b.up_proj": [1.0]}),
        (EXPERTS, {"a.q_proj": [1.0, 0.0, 0.0], "b.up_proj": [1.0, 0.0, 0.0], "c": [1.0, 0.0, 0.0]}),
        ([EXPERTS[0], Expert({"a.q_proj": torch.ones(7)})], [0.5, 0.5]),
        ([EXPERTS[0], Expert({**vectors(1), "c": torch.ones(2)})], [0.5, 0.5]),
        ([EXPERTS[0], Expert({**vectors(1), "b.up_proj": torch.ones(1)})], [0.5, 0.5]),
        ([EXPERTS[0], expert(2, fingerprint="0" * 32)], [0.5, 0.5]),
    ],
)
def test_bad_mixtures(experts: list[Expert], weights: Any) -> None:
    with pytest.raises(ValueError, match=r"expert|weights"):
        mix(experts, weights)


def test_interpolate() -> None:
    assert same(interpolate(EXPERTS[0], 1.0), vectors(1))
    assert same(interpolate(EXPERTS[0], 0.0), {name: torch.ones_like(z) for name, z in vectors(1).items()})
    for amount in (0.5, 1.5, -1.0):
        for name, z in interpolate(EXPERTS[0], amount).z.items():
            torch.testing.assert_close(z, 1 - amount + amount * vectors(1)[name], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="finite"):
        interpolate(EXPERTS[0], float("nan"))


def test_negate() -> None:
    once = negate(EXPERTS[0])
    for name, z in vectors(1).items():
        torch.testing.assert_close(once.z[name], 2 - z, rtol=0, atol=1e-6)
        torch.testing.assert_close(negate(once).z[name], z, rtol=0, atol=1e-6)
    nothing = mix([EXPERTS[0], once], [0.5, 0.5])
    assert all(torch.allclose(z, torch.ones_like(z), rtol=0, atol=1e-6) for z in nothing.z.values())


@pytest.mark.parametrize(("keep", "count"), [(0.0, 0), (0.1, 1), (0.5, 6), (0.9, 10), (1.0, 11)])
def test_sparsify_keeps_the_largest_moves(keep: float, count: int) -> None:
    before = torch.cat(list(vectors(1).values()))
    sparse = sparsify(EXPERTS[0], keep)
    assert {name: z.shape for name, z in sparse.z.items()} == {name: z.shape for name, z in vectors(1).items()}
    after = torch.cat(list(sparse.z.values()))
    kept = after != 1
    assert int(kept.sum()) == count
    assert torch.equal(after[kept], before[kept])
    if 0 < count < 11:
        assert (before[kept] - 1).abs().min() >= (before[~kept] - 1).abs().max()


def test_sparsify_among_equal_moves() -> None:
    """Many values sit exactly on the trust region's bound."""
    bounded = Expert({"a": torch.full((6,), 2.0), "b": torch.full((4,), 2.0)})
    assert sum(int((z != 1).sum()) for z in sparsify(bounded, 0.3).z.values()) == 3


@pytest.mark.parametrize("keep", [-0.1, 1.1, float("nan")])
def test_bad_shares(keep: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        sparsify(EXPERTS[0], keep)
