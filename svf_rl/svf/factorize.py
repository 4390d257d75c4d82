"""The frozen factors of a base: W = U diag(s) Vt for every targeted matrix, computed once and kept on disk.

Source: Transformer-Squared, section 3.1 (arXiv 2501.06252).
Differs from the source (SakanaAI/self-adaptive-llms):
1. One rule says which matrices are adapted, `targets`, and it is stored in every expert; the released code repeats the
   substring "mlp" in five places and decomposes embeddings that it never uses.
2. Factors are float32 whatever the base is. In bfloat16 the released code changes the base by 0.35 % before training starts.
3. Truncation to `rank` keeps what it leaves out in the base: the adapted weight is W + U diag(s (z - 1)) Vt.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from svf_rl.base.load import Base
from svf_rl.errors import BaseError
from svf_rl.files import cache_root, read_tensors, write_tensors
from svf_rl.progress import Progress
from svf_rl.types import Factors

TARGETS = {
    "attention": r"\.(self_attn|attn|attention|self_attention)\.",
    "mlp": r"\.(mlp|feed_forward|ffn)\.",
    "attention+mlp": r"\.(self_attn|attn|attention|self_attention|mlp|feed_forward|ffn)\.",
}
AT_ONCE = 4  # matrices that are decomposed at a time; each takes the memory of a copy
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def find_targets(model: nn.Module, targets: str) -> dict[str, nn.Module]:
    """The linear layers whose path matches `targets`: a key of TARGETS, or a regular expression searched in ".path.".

    Raises BaseError if nothing matches, or if a match is quantised, on the meta device, or no linear layer at all.
    """
    try:
        rule = re.compile(TARGETS.get(targets, targets))
    except re.error as error:
        raise BaseError(f"targets={targets!r} is no regular expression ({error}); give one, or {', '.join(TARGETS)}") from error
    found = {n: m for n, m in model.named_modules() if rule.search(f".{n}.") and not list(m.children()) and _is_matrix(m)}
    if not found:
        kinds = ", ".join(TARGETS)
        raise BaseError(f"no linear layer of this base matches targets={targets!r}; give one of {kinds}, or a regular expression")
    for name, module in found.items():
        _refuse_unsuited(name, module)
    return found


def _is_matrix(module: nn.Module) -> bool:
    """A linear layer, or something that stands in for one (a quantised layer)."""
    kind = type(module).__name__.lower()
    return isinstance(module, nn.Linear | Conv1D) or ("linear" in kind and "embedding" not in kind)


def _refuse_unsuited(name: str, module: nn.Module) -> None:
    weight = getattr(module, "weight", None)
    kind = type(module).__name__
    plain = type(module).forward in (nn.Linear.forward, Conv1D.forward)  # a subclass may scale or unpack its weight
    if not plain or type(weight) is not nn.Parameter or weight.dtype not in _DTYPES:
        raise BaseError(f"{name} ({kind}) is quantised and cannot be factorised; load the base in float32 or bfloat16 instead")
    if weight.is_meta:
        raise BaseError(f"{name} ({kind}) is on the meta device and has no values; load the base with device=cpu or cuda")


def matrix(module: nn.Module) -> Float[Tensor, "out in"]:
    """The weight of a linear layer as [out, in]; Conv1D of GPT-2 stores it transposed."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.T if isinstance(module, Conv1D) else weight


def factorize(
    base: Base, targets: str, rank: int | None = None, progress: Progress | None = None, cache: Path | None = None
) -> dict[str, Factors]:
    """Factors of every targeted matrix, from the cache when it has them. rank=None keeps every singular value.

    Raises BaseError as `find_targets` does, for a rank below 1, and for weights that are not finite.
    """
    if rank is not None and rank < 1:
        raise BaseError(f"adapter.rank must be a positive number or null for all, not {rank}")
    modules = find_targets(base.model, targets)
    path = (cache or cache_folder()) / f"{_key(base.fingerprint, list(modules), rank)}.safetensors"
    factors, bar = _read(path, modules), progress or Progress(quiet=True)
    if factors is None:
        factors = _factors(modules, rank, bar)
        _keep(path, factors, bar)
    if rank is not None:
        for name, module in modules.items():
            bar.say(f"{name}: rank {len(factors[name].s)}, error {truncation_error(matrix(module).cpu(), factors[name]):.2%}")
    return {name: Factors(*(t.to(base.device) for t in f)) for name, f in factors.items()}


def cache_folder() -> Path:
    """Where factors are kept."""
    return cache_root() / "factors"


def truncation_error(weight: Float[Tensor, "out in"], factors: Factors) -> float:
    """||W - U diag(s) Vt|| / ||W||, Frobenius: what `rank` leaves untrained."""
    rebuilt = (factors.U * factors.s) @ factors.Vt
    return float(torch.linalg.norm(weight.float() - rebuilt) / torch.linalg.norm(weight.float()))


def _factors(modules: Mapping[str, nn.Module], rank: int | None, bar: Progress) -> dict[str, Factors]:
    """Several matrices at a time, each on one thread: most of a decomposition cannot use more."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(min(AT_ONCE, threads), initializer=torch.set_num_threads, initargs=(1,))
    over: Callable[..., Iterator[Factors]] = map if threads == 1 else pool.map
    try:
        found = over(lambda name: _svd(name, matrix(modules[name]), rank), modules)
        return {name: next(found) for name in bar.over(list(modules), "factorising")}
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _svd(name: str, weight: Float[Tensor, "out in"], rank: int | None) -> Factors:
    if not bool(weight.isfinite().all()):
        raise BaseError(f"{name} has values that are not finite; the base's files are damaged, fetch them again")
    u, s, vt = torch.linalg.svd(weight.detach().float(), full_matrices=False)
    u = u[:, :rank].contiguous().cpu()  # one after the other, so that at most one of them is there twice
    vt = vt[:rank].contiguous().cpu()
    return Factors(u, s[:rank].contiguous().cpu(), vt)


def _key(fingerprint: str, names: list[str], rank: int | None) -> str:
    rule = hashlib.blake2b(f"{sorted(names)} {rank}".encode(), digest_size=8).hexdigest()
    return f"{fingerprint}-{rule}"


def _read(path: Path, modules: Mapping[str, nn.Module]) -> dict[str, Factors] | None:
    """The cached factors, or None if there are none or the file is damaged (it is then made anew)."""
    try:
        stored, _ = read_tensors(path)
        return {name: Factors(*(stored[f"{name}.{part}"] for part in Factors._fields)) for name in modules}
    except (OSError, KeyError):
        return None


def _keep(path: Path, factors: Mapping[str, Factors], progress: Progress) -> None:
    """Write the cache. A folder that cannot be written costs time, not the run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = {f"{name}.{part}": tensor for name, f in factors.items() for part, tensor in f._asdict().items()}
        write_tensors(path, parts, durable=False)
    except OSError as error:
        progress.say(f"the factors are not kept for the next run: cannot write {str(path)!r} ({error.strerror})")
