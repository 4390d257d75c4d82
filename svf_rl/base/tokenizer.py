"""Text to token ids and back: tiktoken for the embedded base, the Hugging Face tokenizer for any other.

The embedded tokenizer is a byte-level BPE trained by us (`train`). Its one file, `tokenizer.json`, is read by both
libraries; `tiktoken_encoding` rebuilds tiktoken's ranks from it. Text is first cut by PATTERN, in which every digit is
a piece of its own and only ASCII classes occur, so that the two regex engines cannot disagree about Unicode versions.

Differs from the source (openai/tiktoken tiktoken/_educational.py; huggingface/transformers convert_slow_tokenizer.py):
1. tiktoken merges any neighbours whose bytes form a token, the BPE trainer only the pairs that it merged. `train` writes every
   split of every token as a merge, in rank order, so that both give the same ids on every text.
2. Control tokens written in a text are plain text: a prompt cannot end its own document. (A chat template is rendered to text
   before it is encoded, so there they count.)
3. Every string is accepted: half of a surrogate pair is no character and becomes U+FFFD.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiktoken
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from svf_rl.errors import UserError
from svf_rl.files import write_text

_ANSWER = "\ue000answer\ue000"  # stands for an answer in a rendered conversation; no template holds it
END, PAD = "<|endoftext|>", "<|pad|>"
PATTERN = r" ?[A-Za-z]+|[0-9]| ?[^A-Za-z0-9 \t\r\n]+|[ \t\r\n]+(?![^ \t\r\n])|[ \t\r\n]+"


@dataclass(frozen=True)
class TextCodec:
    """What the project needs of a tokenizer.

    prompt: a user's prompt to ids, with whatever the base expects before and around it.  reply: the same for what follows an answer
    that ended with a stop token.  encode: plain text to ids, nothing added.  decode: ids to text, control tokens left out.
    stop_ids: the tokens that end a completion.
    """

    prompt: Callable[[str], list[int]]
    reply: Callable[[str], list[int]]
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    stop_ids: frozenset[int]
    pad_id: int


def embedded_codec(path: Path) -> TextCodec:
    """The codec of a `tokenizer.json` written by `train`: every document starts with END and ends with END."""
    encoding = tiktoken_encoding(path)
    end, pad = encoding.encode_single_token(END), encoding.encode_single_token(PAD)

    def encode(text: str) -> list[int]:
        try:
            return encoding.encode(well_formed(text), disallowed_special=())
        except ValueError as error:  # about a million blanks in a row
            raise UserError("this text has a longer run of blanks than can be cut into tokens; shorten it") from error

    def decode(ids: Sequence[int]) -> str:
        return encoding.decode([i for i in ids if i < min(end, pad)])  # a model may have more ids than its tokenizer

    return TextCodec(lambda text: [end, *encode(text)], encode, encode, decode, frozenset({end}), pad)


def hub_codec(tokenizer: Any, stop_ids: Iterable[int]) -> TextCodec:
    """The codec of a Hugging Face tokenizer; its chat template wraps the prompt when it has one."""
    stops = frozenset(stop_ids)

    def prompt(text: str) -> list[int]:
        if not getattr(tokenizer, "chat_template", None):
            return list(tokenizer(well_formed(text), split_special_tokens=True)["input_ids"])
        messages = [{"role": "user", "content": well_formed(text)}]
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])

    def reply(text: str) -> list[int]:
        if not getattr(tokenizer, "chat_template", None):
            return encode(text)
        turns = [("user", "."), ("assistant", _ANSWER), ("user", well_formed(text))]
        messages = [{"role": role, "content": content} for role, content in turns]
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = list(tokenizer(rendered.split(_ANSWER, 1)[-1], add_special_tokens=False)["input_ids"])
        stop = next((i for i, token in enumerate(ids) if token in stops), -1)
        return ids if decode(ids[: stop + 1]).strip() else ids[stop + 1 :]  # the answer brought its own stop token

    def encode(text: str) -> list[int]:
        return list(tokenizer(well_formed(text), add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stops, default=0)
    return TextCodec(prompt, reply, encode, decode, stops, int(pad))


def well_formed(text: str) -> str:
    """The text with surrogate pairs joined, and U+FFFD for each half of one that stands alone."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def tiktoken_encoding(path: Path) -> tiktoken.Encoding:
    """tiktoken's encoding from a byte-level `tokenizer.json`: the rank of a token is its id."""
    spec = json.loads(path.read_text(encoding="utf-8"))
    to_byte = {char: byte for byte, char in _byte_characters().items()}
    special = {token["content"]: token["id"] for token in spec["added_tokens"]}
    vocab = spec["model"]["vocab"]
    ranks = {bytes(to_byte[c] for c in token): rank for token, rank in vocab.items() if token not in special}
    return tiktoken.Encoding(name=path.parent.name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


def train(texts: Iterable[str], vocab_size: int, path: Path) -> None:
    """Learn a byte-level BPE of `vocab_size` tokens, control tokens included, and write `tokenizer.json`."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = _cutter()
    alphabet = [_byte_characters()[byte] for byte in range(256)]
    size = vocab_size - 2  # END and PAD come after the text's own tokens
    learner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    vocab = dict(sorted(learner.get_vocab().items(), key=lambda entry: entry[1]))
    write_text(path, _assemble(vocab).to_str(pretty=True))


def _assemble(vocab: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=_all_merges(vocab), ignore_merges=True))
    tokenizer.pre_tokenizer = _cutter()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END, PAD])
    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, end)])
    return tokenizer


def _all_merges(vocab: dict[str, int]) -> list[tuple[str, str]]:
    merges = []
    for token in vocab:  # in rank order
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [(left, right) for left, right in splits if left in vocab and right in vocab]
        merges += sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    return merges


def _cutter() -> Any:
    cut = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _byte_characters() -> dict[int, str]:
    """The byte-level alphabet: printable bytes are themselves, the other ones are shifted past 255 (as in GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
