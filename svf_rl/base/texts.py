"""Corpora for next-token training: any text file, folder or JSONL, or text that every Python installation carries.

general   the documentation of the Python language (pydoc's topics).
special   one domain of the standard library: asynchronous programming, the source of asyncio. The embedded base has not seen it.
<path>    a text file; a folder, of which every UTF-8 file is a document; a .jsonl file, of which every line has a "text".

A corpus is cut into passages of whole lines, and the hash of a passage decides whether it is for training, validation or testing:
the same text is always on the same side, in whatever order the files come. Passages of one document may lie on different sides.

Tokenizers for models made from scratch: the embedded one, characters, or an encoding of tiktoken by its name. tiktoken fetches the
tables of an encoding when it is first used; where that fails, the embedded one takes its place, with a message.

Source: computermaster0101/shiftable-attention-poc, README (general and special corpora).
Differs from it: a part of the text is held out; there the loss that is called validation is that of the training text.
"""

import json
import pydoc_data.topics
import random
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path

import tiktoken
import torch
from jaxtyping import Int
from torch import Tensor

from svf_rl.base.load import EMBEDDED
from svf_rl.base.tokenizer import TextCodec, embedded_codec, well_formed
from svf_rl.errors import UserError

DOMAIN = "asyncio"
PASSAGE = 1200  # characters, about 400 tokens of the embedded base
SHARES = {"train": 80, "valid": 10, "test": 10}  # per cent


def read_corpus(name: str) -> list[str]:
    """The documents of a corpus in a fixed order. UserError if there is no text where the name points."""
    if name == "general":
        return [text for _, text in sorted(pydoc_data.topics.topics.items())]
    path = Path(sysconfig.get_path("stdlib"), DOMAIN) if name == "special" else Path(name).expanduser()
    if not path.exists():
        raise UserError(f"there is no corpus {name!r}; expected general, special, or a text file, folder or .jsonl file")
    documents = [text for text in _documents(path) if text.strip()]
    if not documents:
        raise UserError(f"the corpus {name!r} holds no text in UTF-8; give a text file, a folder of them, or a .jsonl file")
    return documents


def _documents(path: Path) -> Iterator[str]:
    if path.is_dir():
        files = [p for p in sorted(path.rglob("*")) if p.is_file() and not p.name.startswith(".")]
        yield from (text for file in files for text in _documents(file))
    elif path.suffix == ".jsonl":
        yield from _json_lines(path)
    else:
        content = path.read_bytes()
        try:
            yield content.decode() if b"\0" not in content else ""
        except UnicodeDecodeError:
            yield ""


def _json_lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            if line.strip():
                yield str(json.loads(line)["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{str(path)!r} line {number}: expected a JSON object with a "text", found {line[:60]!r}') from error


def passages(document: str) -> Iterator[str]:
    """Consecutive whole lines, about PASSAGE characters together; a longer line is cut."""
    piece = ""
    for line in document.splitlines(keepends=True):
        for part in (line[i : i + PASSAGE] for i in range(0, len(line), PASSAGE)):
            if piece and len(piece) + len(part) > PASSAGE:
                yield piece
                piece = ""
            piece += part
    if piece.strip():
        yield piece


def side(passage: str) -> str:
    """train, valid or test, by the hash of the passage."""
    digest = int.from_bytes(blake2b(passage.encode("utf-8", "replace"), digest_size=8).digest(), "big") % 100
    return next(name for name, end in zip(SHARES, accumulate(SHARES.values()), strict=True) if digest < end)


def windows(documents: Sequence[str], codec: TextCodec, length: int, which: str) -> Int[Tensor, "rows length"]:
    """The passages of one side as rows of `length` ids, one passage after another, each begun by a stop token if there is any.

    UserError if they do not fill a single row.
    """
    kept = passages_of(documents, which)
    return rows_of([token for passage in kept for token in [*sorted(codec.stop_ids)[:1], *codec.encode(passage)]], length)


def passages_of(documents: Sequence[str], which: str) -> list[str]:
    """The passages of one side, each of them once."""
    return list(dict.fromkeys(p for document in documents for p in passages(document) if side(p) == which))


def rows_of(ids: Sequence[int], length: int) -> Int[Tensor, "rows length"]:
    """Consecutive rows; what does not fill the last one is left out. UserError if there is none."""
    count = len(ids) // length
    if count == 0:
        raise UserError(f"expected text of at least {length} tokens on each side, found {len(ids)}; give a larger corpus")
    return torch.tensor(ids[: count * length]).view(count, length)


def draw(corpus: Int[Tensor, "n time"], rows: int, seed: int, step: int) -> Int[Tensor, "rows time"]:
    """The step's rows: the next ones in this seed's shuffled order, going round."""
    order = torch.randperm(len(corpus), generator=torch.Generator().manual_seed(seed))
    return corpus[order[(step * rows + torch.arange(rows)) % len(corpus)]]


class OwnCorpus:
    """A corpus to pretrain a base on, with what corpus.Corpus has: text to learn tokens from, and batches."""

    def __init__(self, name: str) -> None:
        self._documents = read_corpus(name)
        self._rows: dict[tuple[str, int], Tensor] = {}

    def sample(self, seed: int, count: int) -> list[str]:
        """At most `count` passages of the training side."""
        found = passages_of(self._documents, "train")
        return random.Random(seed).sample(found, min(count, len(found)))

    def rows(self, codec: TextCodec, length: int, which: str) -> Int[Tensor, "rows time"]:
        """One side as rows of `length` + 1 ids, cut once. UserError if they do not fill one."""
        if (which, length) not in self._rows:
            self._rows[which, length] = windows(self._documents, codec, length + 1, which)
        return self._rows[which, length]

    def batch(self, codec: TextCodec, seed: int, step: int, rows: int, length: int) -> Int[Tensor, "rows time"]:
        return draw(self.rows(codec, length, "train"), rows, seed, step)


def codec_named(name: str, text: str, say: Callable[[str], None]) -> TextCodec:
    """The tokenizer of that name: embedded, characters (those of `text`), or an encoding of tiktoken. UserError for any other."""
    if name == "characters":
        return characters(text)
    if name in tiktoken.list_encoding_names():
        try:
            return _tiktoken(tiktoken.get_encoding(name))
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            say(f"cannot fetch tiktoken's {name} ({type(error).__name__}); going on with the embedded tokenizer")
    elif name != "embedded":
        known = ", ".join(["embedded", "characters", *tiktoken.list_encoding_names()])
        raise UserError(f"unknown tokenizer {name!r}; expected one of {known}")
    return embedded_codec(EMBEDDED / "tokenizer.json")


def characters(text: str) -> TextCodec:
    """One id for each character of `text`, in order; other characters are left out."""
    alphabet = sorted(set(text))
    number = {char: i for i, char in enumerate(alphabet)}

    def encode(string: str) -> list[int]:
        return [number[char] for char in string if char in number]

    return TextCodec(encode, encode, encode, lambda ids: "".join(alphabet[i] for i in ids), frozenset(), 0)


def _tiktoken(encoding: tiktoken.Encoding) -> TextCodec:
    def encode(text: str) -> list[int]:
        return encoding.encode(well_formed(text), disallowed_special=())

    end = encoding.eot_token
    return TextCodec(encode, encode, encode, lambda ids: encoding.decode(list(ids)), frozenset({end}), end)
