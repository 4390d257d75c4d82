"""The table of adapters and the file they share: what is saved comes back, and what is no such file is refused in one line."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from svf_rl import adapters
from svf_rl.adapter import Adapter
from svf_rl.adapters import ADAPTERS, Kind, make_adapter, open_adapter, save_adapter
from svf_rl.base.load import Base, fingerprint
from svf_rl.config import read_config
from svf_rl.errors import ExpertError
from svf_rl.files import read_tensors, write_tensors
from svf_rl.svf.adapter import Parametrisation, SVFAdapter, SVFConfig

ABOUT = {"base": "tiny", "environment": "envs:svf/Math-v0", "command": "svf-rl train", "revision": "abc", "metrics": {"n_test": 3}}
IDS = torch.arange(1, 13)[None]


@dataclass(frozen=True)
class ShiftConfig:
    """Settings of the adapter below."""

    name: str = "shift"
    scale: float = 1.0


class Shift:
    """The least that an adapter can be: one vector, and nothing done with it."""

    name = "shift"

    def __init__(self, base: Base, config: ShiftConfig) -> None:
        self.shift = torch.nn.Parameter(torch.zeros(base.model.config.hidden_size))
        self.scale = config.scale

    def install(self) -> None: ...

    def uninstall(self) -> None: ...

    def disabled(self) -> AbstractContextManager[None]:
        return nullcontext()

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return {"shift": self.shift}

    def state(self) -> dict[str, torch.Tensor]:
        return {"shift": self.shift.detach().clone()}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        if state.keys() != {"shift"} or state["shift"].shape != self.shift.shape:
            raise ValueError(f"expected one tensor 'shift' {tuple(self.shift.shape)}")
        with torch.no_grad():
            self.shift.copy_(state["shift"])

    def constrain(self) -> None: ...

    def penalty(self) -> torch.Tensor | None:
        return None

    def figures(self) -> dict[str, float]:
        return {}


@pytest.fixture(autouse=True)
def shift_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry of the table that needs nothing but this file."""
    monkeypatch.setattr(
        adapters, "ADAPTERS", {**ADAPTERS, "shift": Kind(ShiftConfig, lambda base, config, bar: Shift(base, config))}
    )


@pytest.fixture
def about(tiny_base: Base) -> dict[str, Any]:
    return {**ABOUT, "fingerprint": tiny_base.fingerprint}


@pytest.fixture
def saved(tiny_base: Base, about: dict[str, Any], tmp_path: Path) -> Path:
    """A good file of the adapter above."""
    path, config = tmp_path / "shift.safetensors", ShiftConfig(scale=2.0)
    adapter = Shift(tiny_base, config)
    adapter.load_state({"shift": torch.arange(48.0)})
    save_adapter(path, adapter, config, about)
    return path


def rewritten(path: Path, state: dict[str, torch.Tensor] | None = None, **fields: str | None) -> Path:
    """The file with other tensors, or with fields changed or (None) left out, and an honest digest."""
    tensors, about = read_tensors(path)
    kept = {key: value for key, value in {**about, **fields}.items() if value is not None}
    write_tensors(path, tensors if state is None else state, kept)
    return path


def refusal(path: Path, base: Base) -> str:
    with pytest.raises(ExpertError) as caught:
        open_adapter(path, base)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- round trips


def perturb(adapter: Adapter) -> None:
    """Every parameter a little off its start, within any trust region."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters().values():
            parameter.add_(0.1 * torch.randn_like(parameter).clamp(-1, 1))


def logits(base: Base, adapter: Adapter) -> torch.Tensor:
    """The base's logits under the adapter, which is taken out again whatever happens."""
    adapter.install()
    try:
        with torch.no_grad():
            found: torch.Tensor = base.model(IDS).logits
            return found
    finally:
        adapter.uninstall()


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_is_saved_comes_back(tiny_base: Base, about: dict[str, Any], tmp_path: Path, name: str) -> None:
    """Same logits, same metadata, for every adapter with its default settings; the base is as it was."""
    config, path = read_config("train", [f"adapter={name}"]).adapter, tmp_path / "adapter.safetensors"
    adapter = make_adapter(tiny_base, config)
    perturb(adapter)
    expected = logits(tiny_base, adapter)
    save_adapter(path, adapter, config, about)
    opened, found = open_adapter(path, tiny_base)
    assert (type(opened), opened.name) == (type(adapter), name)
    torch.testing.assert_close(logits(tiny_base, opened), expected, rtol=1e-4, atol=1e-4)
    assert fingerprint(tiny_base.model) == tiny_base.fingerprint
    assert {key: found[key] for key in about} == about


def test_tensors_settings_and_history_come_back(saved: Path, tiny_base: Base, about: dict[str, Any]) -> None:
    opened, found = open_adapter(saved, tiny_base)
    assert isinstance(opened, Shift)
    assert torch.equal(opened.shift, torch.arange(48.0))
    assert opened.scale == 2.0
    assert {key: found[key] for key in about} == about
    assert json.loads(found["settings"]) == {"name": "shift", "scale": 2.0}
    assert (found["format"], found["adapter"]) == ("svf-adapter-1", "shift")


def test_the_same_adapter_is_the_same_bytes(saved: Path, tiny_base: Base, about: dict[str, Any]) -> None:
    opened, _ = open_adapter(saved, tiny_base)
    again = saved.with_name("again")
    save_adapter(again, opened, ShiftConfig(scale=2.0), dict(reversed(about.items())))
    assert again.read_bytes() == saved.read_bytes()


@pytest.mark.parametrize(
    "changes", [{"rank": 5}, {"parametrisation": Parametrisation.paper, "log_bound": None}, {"targets": "mlp"}]
)
def test_svf_writes_an_expert_of_its_targets_and_rank(
    tiny_base: Base, about: dict[str, Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    """The file holds effective z, whatever was trained."""
    config = replace(SVFConfig(), **changes)
    adapter = make_adapter(tiny_base, config)
    perturb(adapter)
    assert isinstance(adapter, SVFAdapter)
    save_adapter(tmp_path / "x", adapter, config, about)
    opened, found = open_adapter(tmp_path / "x", tiny_base)
    assert (found["targets"], found["rank"], found["parametrisation"]) == (config.targets, config.rank, config.parametrisation)
    assert isinstance(opened, SVFAdapter)
    expected, z = adapter.expert().z, opened.expert().z
    assert z.keys() == expected.keys()
    for name in z:
        torch.testing.assert_close(z[name], expected[name], rtol=1e-6, atol=1e-6)


def test_a_history_is_needed(tiny_base: Base, about: dict[str, Any], tmp_path: Path) -> None:
    del about["command"], about["metrics"]
    for config in (ShiftConfig(), SVFConfig()):
        with pytest.raises(ValueError, match="needs command, metrics"):
            save_adapter(tmp_path / "x", make_adapter(tiny_base, config), config, about)
    assert list(tmp_path.iterdir()) == []


# ---- files that are refused


def test_missing_and_foreign_files(tiny_base: Base, tmp_path: Path) -> None:
    assert "found No such file" in refusal(tmp_path / "missing", tiny_base)
    assert "cannot read the expert" in refusal(tmp_path, tiny_base)
    for name, content in {"empty": b"", "text": b"not an adapter at all", "zeros": bytes(100)}.items():
        (tmp_path / name).write_bytes(content)
        assert "found no readable safetensors file" in refusal(tmp_path / name, tiny_base)
    save_file({"x": torch.ones(2)}, tmp_path / "other")
    assert "svf-rl did not write" in refusal(tmp_path / "other", tiny_base)
    write_tensors(tmp_path / "checkpoint", {"x": torch.ones(2)}, {"progress": "{}"})
    assert "neither an expert nor an adapter" in refusal(tmp_path / "checkpoint", tiny_base)


def test_damaged_files(saved: Path, tiny_base: Base) -> None:
    content = saved.read_bytes()
    for cut in range(0, len(content), 37):
        saved.write_bytes(content[:cut])
        assert "cannot read the expert" in refusal(saved, tiny_base)
    for position in range(0, len(content), 41):
        flipped = bytearray(content)
        flipped[position] ^= 4
        saved.write_bytes(flipped)
        refusal(saved, tiny_base)


@pytest.mark.parametrize("field", adapters.REQUIRED)
def test_a_file_without_one_of_its_fields(saved: Path, tiny_base: Base, field: str) -> None:
    assert "neither an expert nor an adapter" in refusal(rewritten(saved, **{field: None}), tiny_base)


def test_an_adapter_of_another_base(saved: Path, architectures: dict[str, Base], tiny_base: Base) -> None:
    message = refusal(saved, architectures["gpt2"])
    assert "'tiny'" in message
    assert tiny_base.fingerprint in message
    assert architectures["gpt2"].fingerprint in message


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"adapter": "shaft"}, "'shaft'"),
        ({"settings": "{"}, "'shift'"),
        ({"settings": "[]"}, "'shift'"),
        ({"settings": "7"}, "'shift'"),
        ({"settings": '{"name": "shift", "size": 3}'}, "size"),
        ({"metrics": "{"}, "'shift'"),
    ],
)
def test_fields_that_cannot_be_read(saved: Path, tiny_base: Base, fields: dict[str, str], what: str) -> None:
    assert what in refusal(rewritten(saved, **fields), tiny_base)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite(saved: Path, tiny_base: Base, bad: float) -> None:
    state = {"shift": torch.zeros(48).index_fill(0, torch.tensor(7), bad)}
    assert "not finite" in refusal(rewritten(saved, state), tiny_base)


@pytest.mark.parametrize("state", [{}, {"shift": torch.zeros(47)}, {"shaft": torch.zeros(48)}])
def test_tensors_that_do_not_fit(saved: Path, tiny_base: Base, state: dict[str, torch.Tensor]) -> None:
    assert "does not fit this base" in refusal(rewritten(saved, state), tiny_base)


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_refuses_the_tensors_of_another(
    tiny_base: Base, about: dict[str, Any], tmp_path: Path, name: str, saved: Path
) -> None:
    """Whatever the adapter: a file with its settings and other tensors is an error that names the file, not a crash."""
    config, path = read_config("train", [f"adapter={name}"]).adapter, tmp_path / "adapter.safetensors"
    save_adapter(path, make_adapter(tiny_base, config), config, about)
    with pytest.raises(ExpertError):
        open_adapter(rewritten(path, {"z.model.nothing": torch.ones(3)}), tiny_base)
