"""`svf-rl remove`: one specialist less, the others and their prior as they were, and nothing overwritten."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from svf_rl.adapters import make_adapter, open_adapter, save_adapter
from svf_rl.attention.adapter import AttentionAdapter
from svf_rl.attention.gated import GatedConfig
from svf_rl.attention.shiftable import ShiftableConfig, prior
from svf_rl.base.load import Base
from svf_rl.learn.prior import Prior, open_prior, prior_file, save_prior


@pytest.fixture
def save(tiny_base: Base, tmp_path: Path) -> Callable[[Any, str], Path]:
    """save(config, name) writes an adapter far from its start, and says where."""

    def make(config: Any, name: str) -> Path:
        adapter, path = make_adapter(tiny_base, config), tmp_path / name
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in adapter.parameters().values():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        save_adapter(path, adapter, config, about(tiny_base))
        return path

    return make


def about(base: Base) -> dict[str, Any]:
    said = {"base": "tiny", "environment": "lm:[a,b,c]", "command": "train", "revision": "", "metrics": {"special": 3.0}}
    return {**said, "fingerprint": base.fingerprint}


@torch.no_grad()
def logits(base: Base, adapter: AttentionAdapter, shut: Tensor | None = None) -> Tensor:
    adapter.install()
    try:
        with prior(adapter, torch.zeros(1, 1 + adapter.config.specialists) if shut is None else shut):
            found: Tensor = base.model(input_ids=torch.arange(3, 17).view(2, 7)).logits
            return found
    finally:
        adapter.uninstall()


def test_the_others_stay(
    svf_rl: Callable[..., Any], save: Callable[..., Path], tiny_base: Base, architecture_folders: dict[str, Path], tmp_path: Path
) -> None:
    """What is left answers as the whole does with the second specialist shut off; its tensors are those of the first and third."""
    path, out = save(ShiftableConfig(specialists=3, rank=2, top_k=2), "three.safetensors"), tmp_path / "new" / "two.safetensors"
    numbers = torch.arange(20).double()
    save_prior(
        prior_file(path),
        Prior(numbers.view(4, 5), torch.eye(5).double(), numbers[:2].clone(), numbers[2:4].clone()),
        about(tiny_base),
    )
    words = [f"base={architecture_folders['llama']}", "base.device=cpu", f"adapter={path}", "specialist=2", f"out={out}"]
    done = svf_rl("remove", *words)
    assert done.code == 0, done.err
    assert done.out.startswith("2 of 3 specialists, all but number 2")
    (whole, _), (fewer, told) = open_adapter(path, tiny_base), open_adapter(out, tiny_base)
    assert isinstance(whole, AttentionAdapter)
    assert isinstance(fewer, AttentionAdapter)
    assert (told["environment"], told["metrics"]) == ("lm:[a,b,c]", {})
    assert told["command"].startswith("svf-rl remove")
    for name, tensor in fewer.state().items():
        assert torch.equal(tensor, whole.state()[name.replace(".specialists.1.", ".specialists.2.")])
    shut = torch.tensor([[0.0, 0.0, -1e4, 0.0]])
    torch.testing.assert_close(logits(tiny_base, fewer), logits(tiny_base, whole, shut), rtol=0, atol=1e-4)
    left = open_prior(prior_file(out), tiny_base, 3)
    assert left is not None
    assert left.centres.tolist() == numbers.view(4, 5)[[0, 1, 3]].tolist()
    for taken in (out, prior_file(out)):
        assert f"{str(taken)!r} exists, and nothing is overwritten" in svf_rl("remove", *words).mistake
        taken.unlink()


def test_the_new_file_has_a_name_of_its_own(svf_rl: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out, message in (("other.bin", "to end in .safetensors"), ("file/other.safetensors", "cannot write to the folder")):
        assert message in svf_rl("remove", "adapter=a.safetensors", "specialist=1", f"out={out}").mistake


@pytest.mark.parametrize(
    ("config", "specialist", "message"),
    [
        (ShiftableConfig(specialists=2), 3, "expected a specialist from 1 to 2, found 3"),
        (ShiftableConfig(specialists=2), -1, "expected a specialist from 1 to 2, found -1"),
        (ShiftableConfig(), 1, "has one specialist, and without it would be the base"),
        (GatedConfig(), 1, "only adapter=shiftable has specialists"),
        (ShiftableConfig(), 0, "expected adapter=<file or run folder> specialist=<number from 1> out=<new file>"),
    ],
)
def test_mistakes(
    svf_rl: Callable[..., Any],
    save: Callable[..., Path],
    architecture_folders: dict[str, Path],
    tmp_path: Path,
    config: Any,
    specialist: int,
    message: str,
) -> None:
    path = save(config, "one.safetensors")
    words = [f"base={architecture_folders['llama']}", "base.device=cpu", f"adapter={path}", "out=other.safetensors"]
    assert message in svf_rl("remove", *words, f"specialist={specialist}").mistake
    assert not (tmp_path / "other.safetensors").exists()
