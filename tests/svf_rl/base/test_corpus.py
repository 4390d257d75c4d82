"""Nothing that is asked later, or measured as held out, is ever trained on; a batch depends on its seed and step alone."""

import itertools
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from svf_rl.base import corpus
from svf_rl.base.tokenizer import embedded_codec

DOCUMENTS = 3000
TASKS = [kind for kind in corpus.MIX if kind != "human"]


@pytest.fixture(scope="session")
def passages() -> dict[str, list[str]]:
    return {"trained": corpus.human_text(held_out=False), "held out": corpus.human_text(held_out=True)}


def words(text: str) -> str:
    return " ".join(text.split())


# ---- questions


@pytest.fixture(scope="session")
def later(texts: corpus.Corpus) -> dict[str, list]:
    """The first questions of every task in the splits that are used after pretraining."""
    rows = {}
    for kind in TASKS:
        task = texts._tasks[kind]
        rows[kind] = [task.row(split, index) for split in ("train", "valid", "test") for index in range(60)]
    return rows


@pytest.fixture(scope="session")
def drawn(texts: corpus.Corpus) -> list:
    """(kind, item, text) of many documents; the items are caught where the corpus draws them."""
    documents: list = []
    with pytest.MonkeyPatch.context() as patch:
        for kind, task in texts._tasks.items():
            draw = task.draw

            def caught(split: str, rng: random.Random, kind: str = kind, draw=draw):
                documents.append([kind, draw(split, rng)])
                return documents[-1][1]

            patch.setattr(task, "draw", caught)
        rng = random.Random(0)
        for _ in range(DOCUMENTS):
            before = len(documents)
            prompt, answer = texts.document(rng)
            if len(documents) == before:
                documents.append(["human", None])
            documents[-1].append(prompt + answer)
    return documents


def test_no_question_is_of_another_split(later: dict[str, list], drawn: list) -> None:
    """Across tasks too: one task may ask about another one's question."""
    kept = {item.key for items in later.values() for item in items}
    trained = {item.key for _, item, _ in drawn if item is not None}
    assert len(kept) > 500
    assert len(trained) > 500
    assert not kept & trained


def test_no_document_holds_a_question_of_another_split(later: dict[str, list], drawn: list) -> None:
    """Bare sums are too short to be searched for: 4 + 5 is in 24 + 5. They are compared whole."""
    generated = "\0".join(text for kind, _, text in drawn if kind != "human")
    asked = {item.prompt for _, item, _ in drawn if item is not None}
    for items in later.values():
        assert not asked & {item.prompt for item in items}
        assert not [item.prompt for item in items if len(item.prompt) > 30 and item.prompt in generated]


def test_the_mix_is_as_stated(drawn: list) -> None:
    counts, total = Counter(kind for kind, _, _ in drawn), sum(corpus.MIX.values())
    assert counts.keys() == corpus.MIX.keys()
    for kind, weight in corpus.MIX.items():
        share = weight / total
        assert abs(counts[kind] / DOCUMENTS - share) < 5 * (share * (1 - share) / DOCUMENTS) ** 0.5


def test_documents_are_questions_with_answers(drawn: list) -> None:
    for _, item, text in drawn:
        if item is not None:
            assert text.startswith(item.prompt)
            assert len(text) > len(item.prompt), "an answer follows"


# ---- human text


def test_held_out_passages_are_not_trained_on(passages: dict[str, list[str]]) -> None:
    assert len(passages["trained"]) > 5000
    assert len(passages["held out"]) > 100
    assert not set(passages["trained"]) & set(passages["held out"])


def test_held_out_passages_share_no_long_run_of_words(passages: dict[str, list[str]]) -> None:
    """Human text repeats itself: cut elsewhere, a passage may come again. Searched as text, for some of the passages."""
    trained = " \0 ".join(["", *map(words, passages["trained"]), ""])
    for text in random.Random(0).sample(passages["held out"], 40):
        parts = words(text).split(" ")
        for i in range(max(1, len(parts) - 7)):
            assert f" {' '.join(parts[i : i + 8])} " not in trained


def test_held_out_passages_are_not_in_the_documentation_topics(passages: dict[str, list[str]]) -> None:
    """Pieces of these are shown by a task ("other" of WhichTask), so they cannot count as unseen."""
    import pydoc_data.topics

    topics = words(" ".join(pydoc_data.topics.topics.values()))
    assert not [
        text for text in passages["held out"] if sum(map(str.isalpha, text)) > 60 and words(text) in topics
    ]  # not lines of a table


def test_passages_are_short_and_distinct(passages: dict[str, list[str]]) -> None:
    for kind in passages.values():
        assert len(set(kind)) == len(kind)
        assert max(map(len, kind)) <= corpus.MAX_CHARACTERS
    assert sum(len(text) > 100 for text in passages["trained"]) > 0.8 * len(passages["trained"])


def test_passages_are_whole_lines_in_order() -> None:
    text = "".join(f"line {i} {'x' * (i % 60)}\n" for i in range(100)) + "y" * 1000 + "\n\n   \n"
    pieces = list(corpus._pieces(text))
    assert "".join(pieces) == text.replace("y" * 1000 + "\n", "y" * corpus.MAX_CHARACTERS)[: len("".join(pieces))]
    assert "".join(pieces).count("line") == 100
    assert all(len(piece) <= corpus.MAX_CHARACTERS for piece in pieces)


# ---- batches


def test_a_batch_is_a_function_of_seed_and_step(texts: corpus.Corpus, tokenizer_json: Path) -> None:
    codec = embedded_codec(tokenizer_json)
    batch = texts.batch(codec, 1, 23, 5, 40)
    random.seed(0)
    torch.manual_seed(0)
    others = [texts.batch(codec, seed, step, 5, 40) for seed, step in ((1, 24), (2, 23), (12, 3), (23, 1))]
    assert torch.equal(texts.batch(codec, 1, 23, 5, 40), batch)
    assert not any(torch.equal(other, batch) for other in others)
    assert batch.shape == (5, 41)
    assert batch.dtype == torch.int64
    assert len({tuple(row) for row in batch.tolist()}) == 5


def test_rows_are_documents_one_after_another(texts: corpus.Corpus, tokenizer_json: Path) -> None:
    codec = embedded_codec(tokenizer_json)
    (end,) = codec.stop_ids
    seen = 0
    for row in texts.batch(codec, 0, 0, 8, 400).tolist():
        assert row[0] == end
        starts = [i for i, token in enumerate(row) if token == end]
        for start, stop in itertools.pairwise(starts):
            text = codec.decode(row[start:stop])
            assert text.strip()
            seen += "Answer:" in text
    assert seen > 5


def test_a_batch_is_the_same_in_another_process(tokenizer_json: Path) -> None:
    """Hashes of strings differ between processes; nothing may depend on them."""
    code = (
        "import sys; from pathlib import Path; from svf_rl.base import corpus; from svf_rl.base.tokenizer import embedded_codec\n"
        "corpus.human_text = lambda held_out: ['a passage']\n"
        "print(corpus.Corpus().batch(embedded_codec(Path(sys.argv[1])), 3, 7, 4, 200).tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code, str(tokenizer_json)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert len(outputs.pop()) > 1000
