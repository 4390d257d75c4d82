"""What every test shares: shape checks on every annotated function, no hub, and tiny random bases of seven architectures.

The bases take the way that a user's model takes: saved to a folder by transformers, loaded back by `load_base`. They are shared by
the whole session and no test may change them; their weights are hashed again at the end.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products on a GPU, read when CUDA starts

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
import transformers

# an int passes for a float, as type checkers have it
jaxtyping.install_import_hook("svf_rl", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

from svf_rl.base import tokenizer  # noqa: E402
from svf_rl.base.load import Base, BaseConfig, fingerprint, load_base  # noqa: E402

torch.set_num_threads(1)  # the models are tiny: a second thread costs more than it gives
torch.use_deterministic_algorithms(True)
transformers.utils.logging.disable_progress_bar()

VOCABULARY, CONTEXT, WINDOW = 300, 128, 8
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
}
GPT2_SHAPE = {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
CONFIGS: dict[str, Callable[[dict[str, int]], Any]] = {
    "llama": lambda ids: transformers.LlamaConfig(**SHAPE, **ids),
    "mistral": lambda ids: transformers.MistralConfig(**SHAPE, **ids, sliding_window=WINDOW),
    "qwen2": lambda ids: transformers.Qwen2Config(**SHAPE, **ids),
    "qwen3": lambda ids: transformers.Qwen3Config(**{**SHAPE, "tie_word_embeddings": True}, **ids),
    "gemma": lambda ids: transformers.GemmaConfig(**{**SHAPE, "tie_word_embeddings": True}, **ids),
    "phi3": lambda ids: transformers.Phi3Config(**SHAPE, **ids, original_max_position_embeddings=CONTEXT),
    "gpt2": lambda ids: transformers.GPT2Config(**GPT2_SHAPE, **ids),
}
TEXTS = [
    "Question: Mia has 54 pens. She buys 13 pens. How many pens does she have now?\nAnswer: 54 + 13 = 67. The answer is 67.",
    "def add(x, y):\n    return x + y\n\nThe answer is the sum. Then she gives the pens away.",
]


@pytest.fixture(scope="session", autouse=True)
def factor_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Factors are cached in a folder of this session, never in the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVF_RL_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer of VOCABULARY tokens, trained on two texts."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.train(TEXTS * 2, VOCABULARY, path)
    return path


@pytest.fixture(scope="session")
def fast_tokenizer(tokenizer_json: Path) -> transformers.PreTrainedTokenizerFast:
    """The same tokenizer as Hugging Face's."""
    names = {"bos_token": tokenizer.END, "eos_token": tokenizer.END, "pad_token": tokenizer.PAD}
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_json), **names)


@pytest.fixture(scope="session")
def architecture_folders(
    tmp_path_factory: pytest.TempPathFactory, fast_tokenizer: transformers.PreTrainedTokenizerFast
) -> dict[str, Path]:
    """A folder in Hugging Face layout for each of CONFIGS, with random weights, biases and norms."""
    root = tmp_path_factory.mktemp("bases")
    for seed, name in enumerate(CONFIGS):
        random_model(name, fast_tokenizer, seed).save_pretrained(root / name)
        fast_tokenizer.save_pretrained(root / name)
    return {name: root / name for name in CONFIGS}


def random_model(name: str, fast: transformers.PreTrainedTokenizerFast, seed: int) -> Any:
    """A model whose every tensor is random: norms about 1 (or their architecture's equivalent), biases about 0."""
    ids = {"bos_token_id": fast.bos_token_id, "eos_token_id": fast.eos_token_id, "pad_token_id": fast.pad_token_id}
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](ids), dtype=torch.float32)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 2.0 / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter) if "norm" in key or "ln_" in key else torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def architectures(architecture_folders: dict[str, Path]) -> Iterator[dict[str, Base]]:
    """Every base by name; at the end of the session their weights must be what they were."""
    bases = {name: load_base(BaseConfig(path=str(folder), device="cpu")) for name, folder in architecture_folders.items()}
    yield bases
    changed = [name for name, base in bases.items() if fingerprint(base.model) != base.fingerprint]
    assert not changed, f"tests changed the weights of {changed}"


@pytest.fixture
def tiny_base(architectures: dict[str, Base]) -> Base:
    return architectures["llama"]


@pytest.fixture(params=list(CONFIGS))
def base(request: pytest.FixtureRequest, architectures: dict[str, Base]) -> Base:
    """One test for every architecture."""
    return architectures[request.param]
