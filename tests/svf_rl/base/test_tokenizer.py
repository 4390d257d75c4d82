"""tiktoken and Hugging Face give the same ids on every text, and every text comes back."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from svf_rl.base import load, tokenizer
from svf_rl.base.tokenizer import END, PAD, TextCodec, embedded_codec, hub_codec, tiktoken_encoding
from svf_rl.errors import UserError

EMBEDDED = Path(load.__file__).parent / "embedded"
PIECES = [END, PAD, "<|", "the answer is", " 42", "  ", "\n\n", "é", "日本", "👩‍👧", "\u0301", "\x00"]
MIXED = st.one_of(
    st.text(),
    st.text(alphabet="ab 1\n\t\r.é<|>"),
    st.lists(st.sampled_from(PIECES)).map("".join),
)
HARD = (
    "",
    " ",
    "a  b   c \n\n  d\t\te  ",
    "0123456789 3.14 1,450,000",
    f"{END}{PAD} not the end",
    "naïve Straße ﬀ \u212b Å 日本語 👩‍👧‍👦 \u200b\u00a0\u2028\x85\x0b\x0c",
    "٣٤ Ⅷ ² ½",
    "\u017f\u212a",  # they match ASCII letters when case is ignored
    "\ufeff\ufffd\U0010ffff\x00",
)


def examples(test: Any) -> Any:
    for text in HARD:
        test = example(text)(test)
    return settings(max_examples=150, deadline=None, derandomize=True)(given(MIXED)(test))


def well_known(tokenizer_json: Path) -> tuple[TextCodec, tiktoken.Encoding, Callable[[str], list[int]]]:
    """Our codec, tiktoken's encoding, and the ids by Hugging Face's library, with control tokens taken as text."""
    theirs = Tokenizer.from_file(str(tokenizer_json))
    theirs.encode_special_tokens = True
    return embedded_codec(tokenizer_json), tiktoken_encoding(tokenizer_json), lambda text: theirs.encode(text).ids


@pytest.fixture(scope="session")
def trained(tokenizer_json: Path) -> Any:
    return well_known(tokenizer_json)


@examples
def test_ids_are_hugging_faces(trained: Any, text: str) -> None:
    codec, _, theirs = trained
    assert codec.prompt(text) == theirs(text)
    assert codec.encode(text) == theirs(text)[1:]
    assert theirs(text)[0] == min(codec.stop_ids)


@examples
def test_text_comes_back(trained: Any, text: str) -> None:
    codec, _, _ = trained
    assert codec.decode(codec.encode(text)) == text
    assert codec.decode([*codec.prompt(text), *codec.stop_ids, codec.pad_id]) == text


@examples
def test_no_text_makes_a_control_token(trained: Any, text: str) -> None:
    codec, _, _ = trained
    assert not {*codec.stop_ids, codec.pad_id} & set(codec.encode(text))


@examples
def test_every_digit_is_a_token(trained: Any, text: str) -> None:
    codec, encoding, _ = trained
    pieces = [encoding.decode_single_token_bytes(i) for i in codec.encode(text)]
    assert b"".join(pieces) == text.encode()
    assert all(len(piece) == 1 for piece in pieces if any(byte in b"0123456789" for byte in piece))


def test_ids_agree_whatever_was_learnt(tmp_path: Path) -> None:
    """Small alphabets give many ways of merging the same letters, where two orders of merging could differ."""
    rng = random.Random(0)
    for alphabet in ("ab", "abc", "ab ", "!?.", "éè", " \n\ta"):
        words = ["".join(rng.choices(alphabet, k=rng.randint(5, 60))) for _ in range(20)]
        tokenizer.train(words, rng.randint(265, 330), tmp_path / "tokenizer.json")
        codec, _, theirs = well_known(tmp_path / "tokenizer.json")
        for _ in range(200):
            text = "".join(rng.choices(alphabet, k=rng.randint(1, 40)))
            assert codec.prompt(text) == theirs(text)
            assert codec.decode(codec.encode(text)) == text


# ---- the tokenizer that is shipped, beside the one that other tools load from the same folder

shipped = pytest.mark.skipif(not (EMBEDDED / "tokenizer.json").exists(), reason="the embedded base is not there yet")


@pytest.fixture(scope="session")
def both() -> tuple[TextCodec, Any]:
    return embedded_codec(EMBEDDED / "tokenizer.json"), transformers.AutoTokenizer.from_pretrained(EMBEDDED)


@shipped
@examples
def test_ids_of_the_shipped_tokenizer(both: tuple[TextCodec, Any], text: str) -> None:
    ours, theirs = both
    assert ours.prompt(text) == theirs(text, split_special_tokens=True)["input_ids"]
    assert ours.encode(text) == theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ours.decode(ours.encode(text)) == theirs.decode(ours.encode(text)) == text
    assert sum(text.count(digit) for digit in "0123456789") == sum(ours.decode([i]) in set("0123456789") for i in ours.encode(text))


@shipped
def test_control_tokens_of_the_shipped_tokenizer(both: tuple[TextCodec, Any]) -> None:
    ours, theirs = both
    assert {theirs.eos_token_id, theirs.bos_token_id} == ours.stop_ids
    assert theirs.pad_token_id == ours.pad_id


@shipped
def test_the_shipped_tokenizer_cuts_by_the_same_pattern() -> None:
    spec = json.loads((EMBEDDED / "tokenizer.json").read_text(encoding="utf-8"))
    assert spec["pre_tokenizer"]["pretokenizers"][0]["pattern"] == {"Regex": tokenizer.PATTERN}


# ---- odd input


SURROGATES = [("a\ud800b", "a\ufffdb"), ("\udfff", "\ufffd"), ("\ud83d\ude00", "😀"), ("\ude00\ud83d", "\ufffd\ufffd")]


@pytest.mark.parametrize(("text", "meant"), SURROGATES)
def test_half_a_surrogate_pair_is_replaced(trained: Any, fast_tokenizer: Any, text: str, meant: str) -> None:
    for codec in (trained[0], hub_codec(fast_tokenizer, [fast_tokenizer.eos_token_id])):
        assert codec.encode(text) == codec.encode(meant)
        assert codec.prompt(text) == codec.prompt(meant)
        assert codec.decode(codec.encode(text)) == meant


def test_a_very_long_text(trained: Any) -> None:
    codec, _, theirs = trained
    for text in ("ab" * 20_000, " " * 20_000 + "x", "\n" * 20_000, "!" * 20_000, "é" * 20_000):
        assert codec.prompt(text) == theirs(text)


def test_blanks_beyond_what_can_be_cut_are_refused(trained: Any) -> None:
    with pytest.raises(UserError, match="run of blanks"):
        trained[0].encode(" " * 2_000_000)


def test_ids_without_a_token_are_left_out(trained: Any) -> None:
    """A model may have more ids than its tokenizer has tokens."""
    codec, encoding, _ = trained
    assert codec.decode([*codec.encode("a"), encoding.n_vocab, 10**6, *codec.encode("b")]) == "ab"


def test_ids_that_are_half_a_character(trained: Any) -> None:
    codec, _, _ = trained
    assert codec.decode(codec.encode("é")[:1]) == "\ufffd"


# ---- the file


def test_the_file_holds_the_asked_number_of_tokens(tokenizer_json: Path) -> None:
    encoding = tiktoken_encoding(tokenizer_json)
    assert encoding.n_vocab == 300
    assert {encoding.encode_single_token(END), encoding.encode_single_token(PAD)} == {298, 299}
    assert {encoding.encode_single_token(bytes([byte])) for byte in range(256)} == set(range(256))


def test_training_again_writes_the_same_file(tmp_path: Path) -> None:
    for name in "ab":
        tokenizer.train(["the cat sat on the mat", "the dog"] * 5, 280, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    json.loads((tmp_path / "a").read_text())


# ---- Hugging Face's tokenizers


def test_control_tokens_in_a_prompt_stay_text(fast_tokenizer: Any, trained: Any) -> None:
    end = fast_tokenizer.eos_token_id
    codec = hub_codec(fast_tokenizer, [end])
    text = f"one{END}two{PAD}"
    assert fast_tokenizer(text)["input_ids"].count(end) == 2, "by itself it would end the document"
    assert codec.prompt(text) == trained[0].prompt(text)
    assert codec.encode(text) == trained[0].encode(text)
    assert fast_tokenizer(text)["input_ids"].count(end) == 2, "the tokenizer is not changed by it"


def test_hub_codec_decodes_without_control_tokens(fast_tokenizer: Any) -> None:
    codec = hub_codec(fast_tokenizer, [fast_tokenizer.eos_token_id])
    ids = [*codec.prompt("She sells 3 pens ."), fast_tokenizer.eos_token_id, fast_tokenizer.pad_token_id]
    assert codec.decode(ids) == "She sells 3 pens ."


def test_hub_codec_pads_with_something() -> None:
    class Bare:
        pad_token_id = None

    assert hub_codec(Bare(), [9, 4]).pad_id == 4
    assert hub_codec(Bare(), []).pad_id == 0
    assert hub_codec(Bare(), [9, 4]).stop_ids == {4, 9}


# ---- replies: what follows an answer that ended with a stop token


def test_a_reply_to_a_plain_base_is_its_text(trained: Any, fast_tokenizer: Any) -> None:
    for codec in (trained[0], hub_codec(fast_tokenizer, [fast_tokenizer.eos_token_id])):
        assert codec.reply("\nNo. Again:") == codec.encode("\nNo. Again:")
        assert codec.reply("") == []


TURN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}AFTER{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.mark.parametrize("after", [END, f" {END}", f"\n{END}\n", "", "\n"])
def test_a_reply_completes_the_conversation_that_the_template_would_render(fast_tokenizer: Any, after: str) -> None:
    """prompt + answer + stop + reply are the ids of the whole conversation; the answer's stop token is not repeated."""
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=fast_tokenizer.backend_tokenizer, eos_token=END, pad_token=PAD)
    theirs.chat_template = TURN.replace("AFTER", after)
    end = theirs.eos_token_id
    codec = hub_codec(theirs, [end])
    reply = codec.reply("No. Why \ue000answer\ue000?")
    text = theirs.decode(reply)
    assert "No. Why \ue000answer\ue000?" in text
    assert text.endswith("<assistant>")
    assert reply.count(end) == after.count(END)  # after the user's words; the answer brought its own
    turns = [("user", "Q"), ("assistant", "A"), ("user", "No.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    whole = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    said = theirs.decode([*codec.prompt("Q"), *codec.encode("A"), *([end] if END in after else []), *codec.reply("No.")])
    assert "".join(said.split()) == "".join(whole.split())
