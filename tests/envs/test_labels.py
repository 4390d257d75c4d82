"""Labelled texts from small files; what an answer names is told by hand."""

import json

import pytest

from envs.labels import labels, reader
from envs.sources import RowsError

CSV = "text,label\nThe engine stops.,cars\nRoses need sun.,garden\nThe brake is worn.,cars\n"


def csv_file(tmp_path, text=CSV) -> dict[str, str]:
    (tmp_path / "a.csv").write_text(text)
    return {"test": str(tmp_path / "a.csv")}


def test_labels_are_found_in_the_data(tmp_path):
    made = labels(csv_file(tmp_path))
    item = made.row("test", 1)
    assert item.prompt == "Text: Roses need sun.\nLabel (cars, garden):"
    assert item.gold == " garden"


@pytest.mark.parametrize(
    ("completion", "named", "flexible", "strict"),
    [
        (" garden", "garden", 1, 1),
        ("GARDEN.", "garden", 1, 1),
        ("It is about cars, no, about the garden, I think", "garden", 1, 0),
        ("garden or cars", "cars", 0, 0),
        ("gardening", "", 0, 0),
        ("", "", 0, 0),
    ],
)
def test_the_last_label_named_counts(tmp_path, completion, named, flexible, strict):
    for reward in ("flexible", "strict"):
        made = labels(csv_file(tmp_path), reward=reward)
        score = made.score(made.row("test", 1), completion)
        assert score.info == {"strict": strict, "flexible": flexible, "label": "garden", "predicted": named}
        assert score.reward == score.info[reward]
        assert score.verdict == ("no_answer" if not named else "pass" if score.reward else "wrong")


def test_overlapping_and_odd_labels():
    read = reader(["spam", "not spam", "C++", "C", "very (very) bad", "São"])
    for text, label in [
        ("it is not spam", "not spam"),
        ("it is spam", "spam"),
        ("C++", "C++"),
        ("Only C.", "C"),
        ("Very (VERY) bad!", "very (very) bad"),
        ("são", "São"),
        ("spammer", None),
        ("c" * 50, None),
    ]:
        assert read(text) == label, text


def test_numbers_stand_for_given_names_unless_they_are_names(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"note": "one", "y": 0}\n{"note": "two", "y": 1}\n{"note": "three", "y": 7}')
    made = labels({"test": str(tmp_path / "a.jsonl")}, text="note", label="y", labels=["bad", "good"])
    assert [made.row("test", i).gold for i in range(made.size("test"))] == [" bad", " good"]
    assert [s.count for s in made.skipped.values()] == [1]
    plain = labels({"test": str(tmp_path / "a.jsonl")}, text="note", label="y")
    assert plain.row("test", 2).gold == " 7"


def test_the_template_may_use_any_column(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"id": i, "text": f"t {i}", "label": "ab"[i % 2]}) for i in range(4)))
    made = labels({"test": str(tmp_path / "a.jsonl")}, template="{id}: {text} ({labels})")
    assert made.row("test", 3).prompt == "3: t 3 (a, b)"


def test_bad_columns_are_refused(tmp_path):
    with pytest.raises(RowsError, match="two labels or more in column 'topic'"):
        labels(csv_file(tmp_path), label="topic")
    with pytest.raises(RowsError, match="can be asked: 3 x no column 'body'"):
        labels(csv_file(tmp_path), text="body")
    with pytest.raises(RowsError, match="different whatever their case"):
        labels(csv_file(tmp_path, "text,label\na,Yes\nb,yes\n"))
    with pytest.raises(RowsError, match="more than 200 different labels"):
        labels(csv_file(tmp_path, "text,label\n" + "".join(f"a{i},b{i}\n" for i in range(300))))
    with pytest.raises(RowsError, match="reward must be"):
        labels(csv_file(tmp_path), reward="share")
