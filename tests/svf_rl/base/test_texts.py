"""Corpora and their rows; tokenizers by name."""

import json
from pathlib import Path

import pytest
import requests
import tiktoken

from svf_rl.base import texts
from svf_rl.base.load import EMBEDDED
from svf_rl.base.tokenizer import embedded_codec
from svf_rl.errors import UserError

LINES = "".join(f"line {i} of a text\n" for i in range(400))


@pytest.mark.parametrize("name", ["general", "special"])
def test_every_installation_has_two_corpora(name: str) -> None:
    documents = texts.read_corpus(name)
    assert len(documents) > 10
    assert sum(map(len, documents)) > 100_000


def test_a_file_a_folder_and_lines_of_json_are_corpora(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "picture.bin").write_bytes(b"\0\1")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    lines = tmp_path / "rows.jsonl"
    lines.write_text(json.dumps({"text": "third"}) + "\n\n" + json.dumps({"text": "fourth\u2028"}) + "\n")
    assert texts.read_corpus(str(tmp_path / "b.txt")) == ["second"]
    assert texts.read_corpus(str(lines)) == ["third", "fourth\u2028"]
    assert texts.read_corpus(str(tmp_path)) == ["first", "second", "third", "fourth\u2028"]


def test_what_is_no_corpus_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n{"words": "x"}\n')
    for name, says in {"nowhere": "there is no corpus", "empty.txt": "holds no text", "rows.jsonl": "line 2"}.items():
        with pytest.raises(UserError, match=says):
            texts.read_corpus(str(tmp_path / name))


def test_passages_are_the_text_and_none_is_long() -> None:
    long = LINES + "x" * 3000
    pieces = list(texts.passages(long))
    assert "".join(pieces) == long
    assert max(map(len, pieces)) <= texts.PASSAGE


def test_the_sides_are_disjoint_and_together_all_of_the_text() -> None:
    document = texts.read_corpus("special")
    pieces = {p for text in document for p in texts.passages(text)}
    shares = {which: sum(texts.side(p) == which for p in pieces) / len(pieces) for which in texts.SHARES}
    assert sum(shares.values()) == 1
    assert shares["train"] == pytest.approx(0.8, abs=0.06)
    assert shares["test"] == pytest.approx(0.1, abs=0.05)


def test_rows_hold_the_passages_in_order() -> None:
    codec = embedded_codec(EMBEDDED / "tokenizer.json")
    rows = texts.windows([LINES, LINES], codec, 16, "train")  # the second copy adds nothing
    kept = [p for p in texts.passages(LINES) if texts.side(p) == "train"]
    ids = [token for p in kept for token in codec.prompt(p)]
    assert rows.flatten().tolist() == ids[: len(ids) // 16 * 16]


def test_a_text_too_small_for_a_row_is_refused() -> None:
    with pytest.raises(UserError, match="at least 16 tokens"):
        texts.windows(["a few words"], embedded_codec(EMBEDDED / "tokenizer.json"), 16, "train")


def test_characters() -> None:
    codec = texts.characters("hello")
    assert codec.encode("hole!") == [1, 3, 2, 0]
    assert codec.decode(codec.encode("hello")) == "hello"


def test_an_encoding_that_cannot_be_had_gives_way_to_the_embedded_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> tiktoken.Encoding:
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    said: list[str] = []
    codec = texts.codec_named("gpt2", "", said.append)
    assert codec.encode("a text") == embedded_codec(EMBEDDED / "tokenizer.json").encode("a text")
    assert said == ["cannot fetch tiktoken's gpt2 (ConnectionError); going on with the embedded tokenizer"]


def test_an_encoding_of_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    small = tiktoken.Encoding(
        "small", pat_str=".", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={"<|endoftext|>": 256}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: small)
    codec = texts.codec_named("gpt2", "", print)
    assert codec.encode("<|endoftext|>") == list(b"<|endoftext|>")
    assert (codec.decode(codec.encode("añb")), codec.stop_ids) == ("añb", {256})


def test_an_unknown_tokenizer_is_refused() -> None:
    with pytest.raises(UserError, match="unknown tokenizer 'gpt9'"):
        texts.codec_named("gpt9", "", print)
