"""Which rows a task has, and in which split: small files, counted by hand."""

import json
from itertools import combinations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.rows import AGAIN, PRECEDENCE, SHARES, RowTask, content, declared, fill
from envs.sources import Row, RowsError, Unusable
from envs.text import Item, Score


def item(row: Row) -> Item:
    return Item(row.text("q"), row.text("a"), content(row.text("q")))


def score(question: Item, completion: str) -> Score:
    return Score(float(completion == question.gold), "pass")


def task(path, **more) -> RowTask:
    return RowTask("small", path, item, score, **more)


def write(path, questions) -> str:
    path.write_text("".join(json.dumps({"q": q, "a": f"answer to {q}"}) + "\n" for q in questions))
    return str(path)


def prompts(made: RowTask) -> dict[str, list[str]]:
    return {split: [made.row(split, i).prompt for i in range(made.size(split))] for split in SHARES}


def test_one_file_is_divided_in_the_shares_without_pretrain(tmp_path):
    made = task(write(tmp_path / "a.jsonl", [f"question {i}" for i in range(4000)]))
    sizes = {split: made.size(split) / 40 for split in SHARES}
    assert sizes == pytest.approx({"train": 50, "valid": 20, "test": 30}, abs=3)
    found = prompts(made)
    assert sorted(p for ps in found.values() for p in ps) == sorted(f"question {i}" for i in range(4000))
    assert made.skipped == {}
    numbers = [int(p.split()[1]) for p in found["train"]]
    assert numbers == sorted(numbers), "rows keep the order of the file"


def test_a_row_belongs_where_its_content_says_wherever_it_stands(tmp_path):
    before = prompts(task(write(tmp_path / "a.jsonl", [f"question {i}" for i in range(100)])))
    after = prompts(task(write(tmp_path / "b.jsonl", [f"question {i}" for i in reversed(range(200))])))
    assert all(set(before[split]) <= set(after[split]) for split in SHARES)


def test_declared_files_are_the_splits(tmp_path):
    files = {split: write(tmp_path / f"{split}.jsonl", [f"{split} {i}" for i in range(9)]) for split in SHARES}
    assert prompts(task(files)) == {split: [f"{split} {i}" for i in range(9)] for split in SHARES}
    other = {"train": files["train"], "validation": files["valid"], "test": files["test"]}
    assert prompts(task(other)) == prompts(task(files))


def test_without_a_valid_file_a_part_of_train_is_held_out(tmp_path):
    train = write(tmp_path / "train.jsonl", [f"train {i}" for i in range(1400)])
    made = task({"train": train, "test": write(tmp_path / "test.jsonl", ["test 1", "test 2"])})
    assert made.size("train") + made.size("valid") == 1400
    assert made.size("valid") == pytest.approx(400, abs=60)
    assert prompts(made)["test"] == ["test 1", "test 2"]


def test_a_file_for_evaluation_alone(tmp_path):
    made = task({"test": write(tmp_path / "test.jsonl", ["one", "two"])})
    assert [made.size(split) for split in ("train", "valid", "test")] == [0, 0, 2]
    with pytest.raises(IndexError, match="small has 0 questions in train"):
        made.row("train", 0)


def test_a_question_that_occurs_again_is_kept_once_by_test_then_valid_then_train(tmp_path):
    files = {
        "train": write(tmp_path / "a.jsonl", ["one", "two", "three", "three"]),
        "valid": write(tmp_path / "b.jsonl", ["two", "four"]),
        "test": write(tmp_path / "c.jsonl", ["  FOUR ", "five"]),
    }
    made = task(files)
    assert prompts(made) == {"train": ["one", "three"], "valid": ["two"], "test": ["  FOUR ", "five"]}
    assert made.skipped[AGAIN].count == 3


def test_a_rows_own_split_counts_in_one_file_and_not_against_a_declared_one(tmp_path):
    path = write(tmp_path / "a.jsonl", ["1 train", "2 test", "3 valid", "4 test"])
    own = {"split": lambda row: row.values["q"].split()[1]}
    assert prompts(task(path, **own)) == {"train": ["1 train"], "valid": ["3 valid"], "test": ["2 test", "4 test"]}
    assert prompts(task({"test": path}, **own))["test"] == ["1 train", "2 test", "3 valid", "4 test"]
    unknown = prompts(task(path, split=lambda row: None))
    assert sum(map(len, unknown.values())) == 4


def test_rows_that_cannot_be_asked_are_counted_with_reason_and_first_place(tmp_path, caplog):
    lines = [
        '{"q": "one", "a": "1"}',
        '{"q": "two"}',
        '{"q": "three", "a": null}',
        '{"q": "four", "a": " "}',
        '{"q": "\\ud800", "a": "5"}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    made = task({"test": str(tmp_path / "a.jsonl")})
    assert {why: (s.count, s.first.rsplit(", ")[-1]) for why, s in made.skipped.items()} == {
        "no column 'a'": (1, "line 2"),
        "nothing in column 'a'": (2, "line 3"),
        "half a character (a lone surrogate)": (1, "line 5"),
    }
    assert caplog.text.count("2 x nothing in column 'a' (first:") == 1
    assert prompts(made)["test"] == ["one"]


def test_no_usable_row_is_an_error_that_names_the_columns(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "one", "answer": "1"}')
    with pytest.raises(RowsError, match=r"a\.jsonl can be asked: 1 x no column 'q'.* Columns: question, answer") as error:
        task(str(tmp_path / "a.jsonl"))
    assert "\n" not in str(error.value)
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(RowsError, match="there are none"):
        task(str(tmp_path / "b.jsonl"))


def test_a_malformed_row_stops_everything(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"q": "one", "a": "1"}\n{"q": "tw')
    with pytest.raises(RowsError, match="line 2: not JSON"):
        task(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("path", [{}, {"dev2": "a"}, {"train": ""}, {"all": "a", "test": "b"}])
def test_paths_that_declare_nothing_known_are_refused(path):
    with pytest.raises(RowsError, match="path must be a file, or name files for some of train, valid, test"):
        declared(path)


def test_unknown_splits_and_indices_are_refused(tmp_path):
    made = task(write(tmp_path / "a.jsonl", ["one"]))
    with pytest.raises(ValueError, match="train, valid, test"):
        made.row("pretrain", 0)
    split = next(split for split in SHARES if made.size(split))
    for index in (-1, 1, 10**9):
        with pytest.raises(IndexError):
            made.row(split, index)


QUESTIONS = st.lists(st.sampled_from("abcdefghijkl"), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(train=QUESTIONS, valid=QUESTIONS, test=QUESTIONS)
def test_no_split_ever_shares_a_question_and_none_is_lost(tmp_path, train, valid, test):
    given_ = {"train": train, "valid": valid, "test": test}
    if not any(given_.values()):
        return
    made = task({split: write(tmp_path / f"{split}.jsonl", questions) for split, questions in given_.items()})
    found = {split: set(questions) for split, questions in prompts(made).items()}
    assert all(not found[a] & found[b] for a, b in combinations(found, 2))
    assert set().union(*found.values()) == {*train, *valid, *test}
    for split in PRECEDENCE:  # a question is kept by the first of the splits that had it
        assert all(question in given_[split] for question in found[split])
    assert found["test"] == set(test)
    again = sum(map(len, given_.values())) - sum(map(len, found.values()))
    assert (made.skipped[AGAIN].count if again else 0) == again


def test_templates():
    row = Row({"q": "What {is} it?", "n": 3, "none": None}, "here")
    assert fill("Q: {q}\n{n} {{words}}", row) == "Q: What {is} it?\n3 {words}"
    for template in ("{other}", "{none}"):
        with pytest.raises(Unusable, match="of the template"):
            fill(template, row)
    for template in ("{", "{q!z}", "{0}", "{q.nothing}", "{n:%}}"):
        with pytest.raises((RowsError, Unusable), match="template"):
            fill(template, row)
