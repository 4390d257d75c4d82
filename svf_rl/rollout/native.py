"""Whole rollouts of float32 bases on the processor: native.c writes all completions, with no Python between two tokens.

On a small base an operation is over before the next one has been asked for, and between two of them everything passes through main
memory. So the whole loop (prefill, layers, draw, refill of rows that end) is one function of C. Each thread runs it on rows of its
own; no thread waits for another, nothing is padded, and a row that ends is free at once. Rows of one prompt share its keys and
values. A completion is the same to the last bit whatever rows it shared a batch with, for every token is summed by itself.

native.c is compiled by the user's C compiler for the user's processor, once (a second or two), and kept in the cache folder. A base
of another kind, or a machine without a compiler, raises Unknown, and the engine of engine.py takes over. The first time that a
model is read in some form, log-probabilities on a probe are compared with the model's own.

Source: the panels and tiles of matrix products, Goto and van de Geijn, Anatomy of high-performance matrix multiplication (2008);
prompts shared by pointer, vLLM's paged attention (arXiv 2309.06180).
Differs from the source: rows hold one piece of their own and one of their prompt; there are no pages, and no scheduler.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from svf_rl.base.load import Base
from svf_rl.files import cache_root, write_bytes
from svf_rl.rollout.engine import Unknown, check_known, turns, window
from svf_rl.rollout.layer import children, dense, is_plain, mixed
from svf_rl.types import Completion

FLAGS = ("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC")
SOURCE = Path(__file__).with_suffix(".c")
FAMILIES = {"llama", "mistral", "qwen2", "qwen3", "phi3"}  # root-mean-square norms, rotation, SiLU
SMALL, FEW = 1 << 23, 16  # numbers in a base that the processor's cache holds; rows of a thread that are worth reading a larger one
MANY = 48  # rows of a thread: of a small base, more only push one another's keys out of the cache
POLL = 0.02  # seconds between two looks at what has ended
TOLERANCE = 1e-4  # nats
_log = logging.getLogger(__name__)
_checked: WeakKeyDictionary[nn.Module, set[tuple[Any, ...]]] = WeakKeyDictionary()  # which forms of a model were found to be right


class _Linear(ctypes.Structure):
    _fields_ = [(n, ctypes.c_void_p) for n in "w down up scale bias".split()]
    _fields_ += [(n, ctypes.c_int64) for n in "inputs outputs rank at".split()]


class _Layer(ctypes.Structure):
    _fields_ = [("qkv", _Linear * 3), ("o", _Linear), ("up", _Linear * 2), ("down", _Linear)]
    _fields_ += [(n, ctypes.c_void_p) for n in "before between q_norm k_norm".split()]


class _Model(ctypes.Structure):
    _fields_ = [("layer", ctypes.POINTER(_Layer)), *((n, ctypes.c_void_p) for n in "embed norm cos sin".split()), ("head", _Linear)]
    _fields_ += [(n, ctypes.c_int64) for n in "layers width heads kv size inner vocabulary turned ranks".split()]
    _fields_ += [("epsilon", ctypes.c_float), ("scale", ctypes.c_float)]


class _Task(ctypes.Structure):
    _fields_ = [("model", ctypes.POINTER(_Model)), *((n, ctypes.c_int64) for n in "jobs longest most stops".split())]
    _fields_ += [(n, ctypes.c_void_p) for n in "first_id first_answer kind ids stop limit uniform".split()]
    _fields_ += [("temperature", ctypes.c_float), *((n, ctypes.c_void_p) for n in "token count ended logprob".split())]
    _fields_ += [(n, ctypes.c_int64) for n in "next_job places cancelled".split()]


class Native:
    """A base as it is adapted now, laid out for native.c, for so many rows. Unknown if it cannot be.

    kinds: what there is to choose from with `choose` (see `sampler.sample`); where every kind has its own scale of singular
    values, row i of the modules' tables belongs to kinds[i].
    """

    @torch.no_grad()
    def __init__(
        self, base: Base, rows: int, capacity: int, kinds: Int[Tensor, " kinds"], choose: Callable[[Tensor], None]
    ) -> None:
        check_fits(base, rows, capacity)
        self.rows = min(rows, MANY * torch.get_num_threads()) if size_of(base) <= SMALL else rows
        self.library, self.base, self.kinds = library(), base, kinds.tolist()
        self._alive: list[Tensor] = []  # what the pointers point to
        self._form: list[tuple[Any, ...]] = []
        choose(kinds)
        self._read(base.model, capacity)
        checked = _checked.setdefault(base.model, set())
        if (form := tuple(self._form)) not in checked:
            choose(kinds[[0, -1]])
            self._check()
            checked.add(form)

    def _read(self, model: Any, capacity: int) -> None:
        config, inner = model.config, model.base_model
        (embed,), (norm,), (layers,) = (children(inner, name) for name in ("embed_tokens", "norm", "layers"))
        self.heads = config.num_attention_heads
        self.kv = getattr(config, "num_key_value_heads", None) or self.heads
        self.size = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        angles = turns(inner, max(capacity, 8))
        m = self.model = _Model(
            layers=len(layers), width=config.hidden_size, heads=self.heads, kv=self.kv, size=self.size,
            inner=config.intermediate_size, vocabulary=config.vocab_size, turned=2 * angles.shape[1], ranks=1,
            epsilon=norm.variance_epsilon, scale=layers[0].self_attn.scaling,
        )  # fmt: skip
        m.embed, m.norm = self._keep(embed.weight), self._keep(norm.weight)
        m.cos, m.sin = self._keep(angles.real), self._keep(angles.imag)
        m.head = self._linear(model.get_output_embeddings())
        self.layers = (_Layer * len(layers))(*map(self._layer, layers))
        m.layer = ctypes.cast(self.layers, ctypes.POINTER(_Layer))
        self._fits()

    def _fits(self) -> None:
        m, lanes = self.model, self.library.lanes()
        for name in ("width", "size", "inner"):
            if getattr(m, name) % lanes:
                raise Unknown(f"its {name} of {getattr(m, name)} is no multiple of {lanes}, this processor's vectors")

    def _layer(self, module: Any) -> _Layer:
        attention, mlp, found = module.self_attn, module.mlp, _Layer()
        q, k = self.heads * self.size, self.kv * self.size
        places = [(0, q), (q, k), (q + k, k)] if hasattr(attention, "q_proj") else [(0, q + 2 * k)]
        for i, part in enumerate(children(attention, "q_proj k_proj v_proj qkv_proj")):
            found.qkv[i] = self._linear(part, places[i][0])
        for i, part in enumerate(children(mlp, "gate_proj up_proj gate_up_proj")):
            found.up[i] = self._linear(part, i * self.model.inner)
        found.o, found.down = self._linear(attention.o_proj), self._linear(mlp.down_proj)
        found.before, found.between = map(self._keep, (module.input_layernorm.weight, module.post_attention_layernorm.weight))
        if hasattr(attention, "q_norm"):
            found.q_norm, found.k_norm = self._keep(attention.q_norm.weight), self._keep(attention.k_norm.weight)
        return found

    def _linear(self, module: nn.Module, at: int = 0) -> _Linear:
        """Its weight, or its factors and the scale of every kind."""
        found, own, factors = _Linear(at=at), dense(module), mixed(module)
        if own is not None:
            weight, bias = own
            (found.outputs, found.inputs), found.w = weight.shape, self._panels(weight)
        elif factors is not None:
            u, vt, bias, added = factors
            (found.outputs, found.rank), found.inputs = u.shape, vt.shape[1]
            found.w = None if added is None else self._panels(added)
            found.down, found.up, found.scale = self._panels(vt), self._panels(u), self._keep(cast(Tensor, module.rows))
            self.model.ranks = max(self.model.ranks, found.rank)
        else:
            raise Unknown(f"it has a {type(module).__name__}, which has to be called")
        self._form.append((type(module), found.inputs, found.outputs, found.rank, bool(found.w), at))
        if bias is not None:
            found.bias = self._keep(F.pad(bias, (0, -len(bias) % self._panel)))
        return found

    @property
    def _panel(self) -> int:
        return 2 * int(self.library.lanes())

    def _panels(self, weight: Float[Tensor, "out in"]) -> int:
        """[out / panel, in, panel]: what a tile of tokens reads from start to end."""
        (outputs, inputs), own = weight.shape, weight.detach().contiguous()
        found = torch.empty(-(-outputs // self._panel), inputs, self._panel)
        self.library.pack(own.data_ptr(), outputs, inputs, found.data_ptr())
        return self._keep(found)

    def _keep(self, x: Tensor) -> int:
        """The address of its numbers, which stay where they are as long as this object."""
        self._alive.append(x.detach().contiguous())
        return self._alive[-1].data_ptr()

    @torch.no_grad()
    def _check(self) -> None:
        """Unknown if the log-probabilities of two short answers are not the model's own."""
        ids = ((torch.arange(12).view(2, 6) * 7 + 1) % self.model.vocabulary).tolist()
        prompts = [(kind, *row[:n]) for kind, row, n in zip((self.kinds[0], self.kinds[-1]), ids, (5, 3), strict=True)]
        found = {i: c for some in self.run(prompts, 2, 1.0, torch.full((2, 2), 0.5), [2, 2], []) for i, c in some.items()}
        rows = [[*prompt[1:], *found[i].ids] for i, prompt in enumerate(prompts)]
        states = self.base.hidden(torch.tensor([row + [0] * (7 - len(row)) for row in rows]), use_cache=False)
        for i, row in enumerate(rows):
            scores = self.base.logits(states[i, len(row) - 3 : len(row) - 1]).log_softmax(-1)
            truth = scores.gather(1, torch.tensor(row[-2:])[:, None])[:, 0]
            error = float((truth - torch.tensor(found[i].logprobs)).abs().max())
            if not error < TOLERANCE:  # whoever sees this has found a fault of ours, and loses only time by it
                _log.warning("sampling is slower: native.c reads this base wrongly (log-probabilities differ by %.1e)", error)
                raise Unknown(f"native log-probabilities differ from the model's by {error:.1e}")

    def run(
        self,
        prompts: Sequence[tuple[int, ...]],
        tokens: int,
        temperature: float,
        uniforms: Float[Tensor, "n tokens"],
        limits: Sequence[int],
        stops: Sequence[int],
    ) -> Iterator[dict[int, Completion]]:
        """Completions as they end, by index. prompts: (kind, ids ...); limits: at most so many tokens of each, `tokens` or fewer.

        Equal prompts are run once.
        """
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), prompts[i]))
        jobs = [(prompt, len(list(copies))) for prompt, copies in groupby(order, key=lambda i: prompts[i])]
        t = Arrays(jobs, self.kinds, uniforms[order], [limits[i] for i in order], stops)
        task = t.task(self.model, tokens, temperature)
        threads, seen = min(torch.get_num_threads(), self.rows), 0
        shares = [self.rows // threads + (i < self.rows % threads) for i in range(threads)]
        memory = [torch.empty(self.library.needed(ctypes.byref(task), share), dtype=torch.uint8) for share in shares]
        with ThreadPoolExecutor(threads, "rollout") as pool:
            try:
                parts = zip(shares, memory, strict=True)
                going = {pool.submit(self.library.work, ctypes.byref(task), share, own.data_ptr()) for share, own in parts}
                while going:
                    going = wait(going, POLL).not_done
                    n = self.library.ended(ctypes.byref(task), seen)
                    yield {order[a]: t.completion(a) for a in t.ended[seen:n].tolist()}
                    seen = n
            finally:
                task.cancelled = 1  # whoever left: the threads do too


class Arrays:
    """What is to be written, and where to: tensors that native.c reads and writes. Answers are in the order of their jobs."""

    def __init__(
        self,
        jobs: Sequence[tuple[tuple[int, ...], int]],
        kinds: list[int],
        uniform: Tensor,
        limits: list[int],
        stops: Sequence[int],
    ) -> None:
        lengths, copies = [len(p) - 1 for p, _ in jobs], [n for _, n in jobs]
        self.longest, (n, tokens) = max(lengths), uniform.shape
        self.first_id, self.first_answer = (torch.tensor([0, *part]).cumsum(0) for part in (lengths, copies))
        self.kind = torch.tensor([kinds.index(p[0]) for p, _ in jobs])
        self.ids = torch.tensor([i for p, _ in jobs for i in p[1:]])
        self.stop, self.limit = torch.tensor([*stops, -1]), torch.tensor(limits)
        self.uniform, self.logprob = uniform.contiguous(), torch.zeros(n, tokens)
        self.token, self.count = torch.zeros(n, tokens, dtype=torch.long), torch.zeros(n, dtype=torch.long)
        self.ended = torch.full((n,), -1)
        self.stops = set(stops)

    def task(self, model: _Model, tokens: int, temperature: float) -> _Task:
        places = {name: x.data_ptr() for name, x in vars(self).items() if isinstance(x, Tensor)}
        sizes = {"jobs": len(self.kind), "longest": self.longest, "most": tokens, "stops": len(self.stop)}
        return _Task(model=ctypes.pointer(model), temperature=temperature, **sizes, **places)

    def completion(self, answer: int) -> Completion:
        n = int(self.count[answer])
        ids = self.token[answer, :n].tolist()
        return Completion(ids, self.logprob[answer, :n].tolist(), "stop" if ids[-1] in self.stops else "length")


def check_fits(base: Base, rows: int, capacity: int) -> None:
    """Unknown for another device, type, family, size or attention than native.c knows, or a model that somebody has hooked into."""
    check_known(base)
    model, config = base.model, base.model.config
    if base.device.type != "cpu" or model.dtype != torch.float32:
        raise Unknown(f"it is {model.dtype} on {base.device.type}, not float32 on the processor")
    if config.model_type not in FAMILIES or config.hidden_act != "silu":
        raise Unknown(f"{config.model_type!r} is another kind of decoder")
    if any((window(config, i) or capacity) < capacity for i in range(config.num_hidden_layers)):
        raise Unknown("some layers see only a window")
    if rows < FEW * torch.get_num_threads() and size_of(base) > SMALL:
        raise Unknown("it is large, and every thread would read all of it for a few rows")
    if type(model.get_input_embeddings()) is not nn.Embedding or not is_plain(model.get_output_embeddings()):
        raise Unknown("its embeddings or its head are not the library's own")


def library() -> Any:
    """native.c, compiled for this processor. Unknown where that is not possible; the reason is logged once."""
    if (found := _load()) is None:
        raise Unknown("native.c could not be compiled")
    return found


def size_of(base: Base) -> int:
    return sum(parameter.numel() for parameter in base.model.parameters())


@cache
def _load() -> Any:
    try:
        found = ctypes.CDLL(str(compiled()))
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        _log.warning("sampling is slower without a working C compiler (gcc, clang or $CC): %s", (reason or ["it failed"])[-1])
        return None
    task, number, address = ctypes.POINTER(_Task), ctypes.c_int64, ctypes.c_void_p
    for name, result, *arguments in (
        ("lanes", number),
        ("pack", None, address, number, number, address),
        ("needed", number, task, number),
        ("work", None, task, number, address),
        ("ended", number, task, number),
    ):
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def compiled(cache: Path | None = None) -> Path:
    """The library for this source, compiler and processor, from the cache folder. OSError or SubprocessError if it cannot be."""
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("gcc", "clang", "cc"))), None)
    if compiler is None:
        raise FileNotFoundError("none found")
    what = (SOURCE.read_text(), compiler, *FLAGS, platform.machine(), _processor())
    key = hashlib.blake2b("\0".join(what).encode(), digest_size=16).hexdigest()
    path = (cache or cache_root() / "native") / f"{key}.so"
    if path.exists():
        return path
    new = Path(tempfile.mkdtemp()) / path.name
    subprocess.run([compiler, *FLAGS, "-o", new, SOURCE, "-lm"], check=True, capture_output=True, text=True, timeout=120)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, new.read_bytes())
    except OSError:  # a folder that cannot be written costs time, not the run
        return new
    shutil.rmtree(new.parent)
    return path


def _processor() -> str:
    """What tells processors apart: code for one may not run on another that shares the cache folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
