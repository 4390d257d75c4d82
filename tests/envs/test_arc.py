"""Rows in the formats of the official files and of the hub's copy, written for this test."""

import json

import pytest

from envs.arc import arc, chosen_key

WORDS = ["iron", "a dead oak", "salt water", "air"]


def official(keys: str, answer: str) -> dict:
    choices = [{"text": text, "label": key} for text, key in zip(WORDS, keys, strict=True)]
    return {"id": "x", "question": {"stem": f"Which is a metal, {answer}?", "choices": choices}, "answerKey": answer}


def hub(keys: str, answer: str) -> dict:
    return {
        "id": "x",
        "question": f"Which is a metal, {answer}?",
        "choices": {"text": WORDS, "label": list(keys)},
        "answerKey": answer,
    }


def task(tmp_path, *rows, **settings):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return arc({"test": str(tmp_path / "a.jsonl")}, **settings)


@pytest.mark.parametrize("form", [official, hub])
@pytest.mark.parametrize(("keys", "answer"), [("ABCD", "A"), ("1234", "4"), ("ABCD", "D")])
def test_both_formats_and_both_kinds_of_keys(tmp_path, form, keys, answer):
    made = task(tmp_path, form(keys, answer))
    item = made.row("test", 0)
    lines = [f"{key}. {text}" for key, text in zip(keys, WORDS, strict=True)]
    assert item.prompt == "\n".join([f"Question: Which is a metal, {answer}?", *lines, "Answer:"])
    for key, text in zip(keys, WORDS, strict=True):
        for written in (
            f" {key}",
            f" ({key})",
            f"{key}. {text}",
            f" The answer is {key}.",
            rf"\boxed{{{key}}}",
            f"\n{key}\n\nQuestion: ",
        ):
            score = made.score(item, written)
            assert (score.reward, score.info["strict"]) == (float(key == answer),) * 2, written
        assert made.score(item, f" {text}").info == {
            "strict": 0.0,
            "flexible": float(key == answer),
            "label": answer,
            "predicted": key,
        }


@pytest.mark.parametrize(
    ("completion", "key"),
    [
        ("A dead oak is no metal, so it must be (C)", "C"),
        ("A dog", None),
        ("B or C? I think C", "C"),
        ("It's air, isn't it", "D"),
        ("neither iron nor air", None),
        ("E", None),
        ("AB", None),
        ("I do not know", None),
        ("", None),
    ],
)
def test_free_answers(tmp_path, completion, key):
    made = task(tmp_path, official("ABCD", "A"))
    assert made.score(made.row("test", 0), completion).info["predicted"] == (key or "")


def test_strict_rewards_only_keys(tmp_path):
    made = task(tmp_path, official("ABCD", "A"), reward="strict")
    item = made.row("test", 0)
    assert made.score(item, "A").reward == 1.0
    assert made.score(item, "iron").reward == 0.0


def test_rows_without_choices_or_key_are_left_out(tmp_path):
    bad = [
        official("ABCD", "E"),
        {"question": "Why?", "answerKey": "A"},
        {**hub("ABCD", "B"), "choices": {"text": WORDS, "label": ["A"]}},
    ]
    made = task(tmp_path, official("ABCD", "A"), *bad)
    assert made.size("test") == 1
    assert sum(s.count for s in made.skipped.values()) == 3


def test_hostile_answers_are_read_in_no_time():
    import time

    started = time.process_time()
    for text in ("(" * 20_000, "A " * 10_000, "A." * 10_000, " " * 20_000, "answer is (" * 2000):
        chosen_key(text, list("ABCD"))
    assert time.process_time() - started < 0.5
