"""The wheel carries the configurations and the embedded base, and its command works from any folder."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_carries_configs_and_base(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"svf_rl/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    base = {f"svf_rl/base/embedded/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md")}
    assert configs | base | {"envs/math.py"} <= names


@pytest.mark.slow
def test_the_installed_command_works_from_another_folder(wheel, tmp_path):
    """A fresh environment that sees this one's packages, but its own svf-rl."""
    venv.create(tmp_path / "venv", with_pip=True, system_site_packages=False)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    site = next(Path(p) for p in sys.path if p.endswith("site-packages"))
    here = next((tmp_path / "venv" / "lib").glob("*/site-packages"))
    (here / "shared.pth").write_text(f"{site}\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = ["algo.steps=1", "algo.prompts=2", "valid_size=4", "test_size=8", "run_dir=run"]
    command = [tmp_path / "venv" / "bin" / "svf-rl", "train", "env=math", *words]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "summary.json").exists()
    where = subprocess.run(
        [python, "-c", "import svf_rl; print(svf_rl.__file__)"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert str(tmp_path) in where.stdout
