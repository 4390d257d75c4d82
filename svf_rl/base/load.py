"""Loading a base: the embedded one, or any Hugging Face causal language model from a local folder or the hub.

A `Base` is the frozen model with its tokenizer. Two of its methods are the whole of what the rest of the system
computes with it: `hidden` (ids to final hidden states) and `logits` (hidden states to vocabulary scores). They are kept apart so
that scores are only ever computed where they are needed, never for [batch, time, vocabulary].

Differs from the source (huggingface/transformers AutoModelForCausalLM):
1. A path that looks like a folder and does not exist is an error; it is never looked up on the hub.
2. When a model's head does something to its logits that we do not know, `hidden` returns the model's own logits and `logits` passes
   them on: slower, but right. This is decided by comparing both on a probe at load time.
3. A model that lacks some of its weights is an error; transformers would fill them with random numbers and warn.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from svf_rl.base.tokenizer import TextCodec, embedded_codec, hub_codec
from svf_rl.errors import BaseError
from svf_rl.files import hash_tensors

EMBEDDED = Path(__file__).parent / "embedded"
_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class BaseConfig:
    """Which base. path is "embedded", a local folder, or a hub id; dtype auto is the file's own; device auto takes a GPU if any."""

    path: str = "embedded"
    dtype: str = "auto"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Base:
    """A frozen model and its tokenizer. fingerprint: a hash of every weight. context: the longest sequence in tokens."""

    model: Any
    codec: TextCodec
    name: str
    fingerprint: str
    context: int
    split_head: bool

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def hidden(self, ids: Int[Tensor, "rows time"], **kwargs: Any) -> Float[Tensor, "rows time width"]:
        """Final hidden states; keyword arguments go to the model (attention_mask, position_ids, past_key_values)."""
        if not self.split_head:
            logits: Tensor = self.model(input_ids=ids, **kwargs).logits
            return logits
        states: Tensor = self.model.base_model(input_ids=ids, **kwargs).last_hidden_state
        return states

    def logits(self, hidden: Float[Tensor, "... width"]) -> Float[Tensor, "... vocabulary"]:
        """Vocabulary scores of hidden states, in float32."""
        return (_head(self.model, hidden) if self.split_head else hidden).float()


def load_base(config: BaseConfig) -> Base:
    """The base that `config` names, frozen, in evaluation mode, on its device. Raises BaseError in one line."""
    if config.dtype not in _DTYPES:
        raise BaseError(f"base.dtype must be one of {', '.join(_DTYPES)}, not {config.dtype!r}")
    source = resolve(config.path)
    if config.path == "embedded":
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it loads in a blink
    device = _device(config.device)
    options = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    try:
        model = _model(source, dtype=_DTYPES[config.dtype], **options)
        codec = _codec(source, model, options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:500]
        raise BaseError(f"cannot load the base {config.path!r} as a causal language model: {reason}") from error
    model.requires_grad_(False).eval().to(device)
    context = int(getattr(model.config, "max_position_embeddings", 0) or 2048)
    return Base(model, codec, config.path, fingerprint(model), context, _head_is_known(model))


def resolve(path: str) -> str:
    """The folder or hub id to load. Raises BaseError for a folder that does not exist or holds no model."""
    folder = EMBEDDED if path == "embedded" else Path(os.path.expanduser(path))
    if folder.exists():
        if not (folder / "config.json").is_file():
            raise BaseError(f"expected a model folder with config.json, found none in {str(folder)!r}; give the folder itself")
        return str(folder)
    if not _HUB_ID.fullmatch(path) or (Path(path).parts[0] != path and Path(path).parts[0] and Path(Path(path).parts[0]).exists()):
        raise BaseError(f"the base folder {path!r} does not exist; give an existing folder, a hub id (owner/name) or 'embedded'")
    return path


def fingerprint(model: nn.Module) -> str:
    """A hash over name, dtype, shape and bytes of every parameter and persistent buffer: equal if and only if the weights are."""
    return hash_tensors(model.state_dict())


def _device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU if there is one. BaseError for a name that torch cannot use here."""
    try:
        device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BaseError(f"base.device={name!r} cannot be used here; give auto, cpu, or cuda on a machine with a GPU") from error
    return device


def _model(source: str, **options: Any) -> Any:
    model, report = transformers.AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options)
    if report["missing_keys"]:
        raise ValueError(f"its files lack the weights {', '.join(sorted(report['missing_keys'])[:3])}")
    return model


def _codec(source: str, model: Any, options: Mapping[str, Any]) -> TextCodec:
    if Path(source) == EMBEDDED:
        return embedded_codec(EMBEDDED / "tokenizer.json")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    ends = model.generation_config.eos_token_id if model.generation_config else None
    ends = tokenizer.eos_token_id if ends is None else ends
    return hub_codec(tokenizer, [] if ends is None else [ends] if isinstance(ends, int) else ends)


def _head(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.get_output_embeddings()(hidden)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


@torch.no_grad()
def _head_is_known(model: Any) -> bool:
    ids = torch.arange(1, 9, device=model.device)[None] % model.config.vocab_size
    try:
        split = _head(model, model.base_model(input_ids=ids).last_hidden_state)
        return torch.equal(split, model(input_ids=ids).logits)
    except (AttributeError, TypeError, RuntimeError):
        return False


@contextmanager
def frozen_check(model: nn.Module) -> Iterator[Callable[[], bool]]:
    """Within it, the yielded function tells whether the base's weights still hash as they did at the start."""
    before = fingerprint(model)
    yield lambda: fingerprint(model) == before
