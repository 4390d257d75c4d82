"""What the tests of the training side share: toy environments that are importable in any process, and bases of other shapes."""

import copy
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers

from svf_rl import cli
from svf_rl.adapters import make_adapter, save_adapter
from svf_rl.base.load import Base, BaseConfig, load_base
from svf_rl.learn.checkpoint import Progress as Counters
from svf_rl.learn.tracking import Tracker
from svf_rl.learn.trainer import AlgoConfig, Run
from svf_rl.progress import Progress
from svf_rl.svf.adapter import SVFAdapter, SVFConfig
from svf_rl.svf.factorize import factorize

HERE = Path(__file__).parent
ABOUT = {"base": "tiny", "command": "svf-rl train", "revision": "abc"}


@pytest.fixture(scope="session", autouse=True)
def toys() -> Iterator[Path]:
    """The folder of toys.py, on the path of this process: gymnasium then makes "toys:toys/Letter-v0"."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        yield HERE
        sys.modules.pop("toys", None)


@pytest.fixture
def toy_env() -> Callable[..., Any]:
    """An environment of toys.py by its name."""
    import gymnasium

    return lambda name, **kwargs: gymnasium.make(f"toys:toys/{name}-v0", disable_env_checker=True, **kwargs)


@pytest.fixture(scope="session")
def make_base(tmp_path_factory: pytest.TempPathFactory, fast_tokenizer: Any) -> Callable[..., Base]:
    """A random base of any configuration, saved and loaded as a user's is."""

    def make(config: Any, seed: int = 0) -> Base:
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 2.0 / parameter.shape[-1] ** 0.5)
        folder = tmp_path_factory.mktemp(config.model_type)
        model.save_pretrained(folder)
        fast_tokenizer.save_pretrained(folder)
        return load_base(BaseConfig(path=str(folder), device="cpu"))

    return make


class Done(NamedTuple):
    """How a command ended: its exit code, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def mistake(self) -> str:
        """The one line that says what the user did wrong; only lines of progress may come before it."""
        assert self.code == 2, self
        (line,) = [line for line in self.err.splitlines() if line.strip() and "%|" not in line]
        return line.removeprefix("svf-rl: ")


@pytest.fixture
def svf_rl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Done]]:
    """The command, run in this process and in a folder of its own: svf_rl("train", "env=math").code"""
    handlers = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born ignoring it
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Done:
        code = cli.main([str(word) for word in words])
        return Done(code, *capsys.readouterr())

    yield run
    for kind, handler in handlers.items():
        signal.signal(kind, handler)


@pytest.fixture
def converted() -> Callable[[Base, torch.dtype], Base]:
    """A copy of a base in another floating-point type."""
    return lambda base, dtype: dataclasses.replace(base, model=copy.deepcopy(base.model).to(dtype))


@pytest.fixture
def stopping() -> Callable[[Base, set[int]], Base]:
    """The base with other stop tokens."""

    def make(base: Base, stops: set[int]) -> Base:
        return dataclasses.replace(base, codec=dataclasses.replace(base.codec, stop_ids=frozenset(stops)))

    return make


@pytest.fixture
def make_run(tiny_base: Base, toy_env: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """A run on a toy environment, ready to train: make_run("Letter", env={...}, steps=5) changes settings of algo."""
    made: list[Run] = []

    def make(name: str = "Letter", *, env: dict[str, Any] | None = None, log_bound: float | None = 0.7, **algo: Any) -> Run:
        settings = AlgoConfig(**{"prompts": 4, "group": 4, "train_rows": 64, "eval_every": 5, "patience": 0, **algo})
        adapter = SVFAdapter(tiny_base.model, factorize(tiny_base, "attention+mlp"), log_bound=log_bound)
        adapter.install()
        folder = tmp_path / f"run{len(made)}"
        folder.mkdir()
        tracker = Tracker(folder, Progress(quiet=True), adapter.figures)
        tracker.start(0)
        made.append(
            Run(
                base=tiny_base,
                adapter=adapter,
                env=toy_env(name, **(env or {})),
                max_tokens=3,
                algo=settings,
                seed=0,
                valid_size=16,
                folder=folder,
                tracker=tracker,
                optimizer=torch.optim.AdamW(adapter.parameters().values(), weight_decay=0.0),
                best=adapter.state(),
                progress=Counters(),
            )
        )
        return made[-1]

    yield make
    for run in reversed(made):
        run.adapter.uninstall()
        run.tracker.close()


@pytest.fixture
def save_expert_of(tiny_base: Base, tmp_path: Path) -> Callable[..., Path]:
    """An expert whose every z has moved at random, in a folder of its name."""

    def save(name: str, seed: int = 0, environment: str = "toys:toys/Letter-v0", **metrics: float) -> Path:
        adapter, path = make_adapter(tiny_base, SVFConfig()), tmp_path / "experts" / name / "expert.safetensors"
        torch.manual_seed(seed)
        with torch.no_grad():
            for z in adapter.parameters().values():
                z.add_(0.5 * torch.randn_like(z)).clamp_(0.6, 1.9)
        path.parent.mkdir(parents=True, exist_ok=True)
        about: dict[str, Any] = {**ABOUT, "environment": environment, "fingerprint": tiny_base.fingerprint, "metrics": metrics}
        save_adapter(path, adapter, SVFConfig(), about)
        return path

    return save
