"""Hugging Face data sets: the real library where it is installed (the extra), and what is said where it is not."""

import sys
import types

import pytest

from envs.hub import parts
from envs.labels import labels
from envs.rows import declared
from envs.sources import RowsError, open_source


class ClassLabel:
    """As the library has it: a column of numbers with names."""

    def int2str(self, number: int) -> str:
        return ["cars", "garden"][number]


class Part(list):
    """One split: rows, and the kinds of its columns."""

    features = types.MappingProxyType({"text": object(), "label": ClassLabel()})


def part(count: int, first: int = 0) -> Part:
    return Part({"text": f"note {first + i}", "label": i % 2 if i else -1} for i in range(count))


@pytest.fixture
def library(monkeypatch):
    """A stand-in for the library, with two data sets."""
    known = {
        "me/parts": {"train": part(20), "validation": part(5, 50), "test": part(10, 80), "extra": part(1)},
        "me/one": {"train": part(40)},
    }

    def load_dataset(name, config):
        if name not in known:
            raise ConnectionError("Couldn't reach\nthe hub")
        return known[name]

    module = types.SimpleNamespace(load_dataset=load_dataset, load_from_disk=lambda path: part(7))
    monkeypatch.setitem(sys.modules, "datasets", module)


def sizes(path):
    made = labels(path, labels=["cars", "garden"])
    return {split: made.size(split) for split in ("train", "valid", "test")}


def test_names():
    assert parts("hf:a/b") == ("a/b", None, None)
    assert parts("hf:a/b:main") == ("a/b", "main", None)
    assert parts("hf:./b::test") == ("./b", None, "test")
    for bad in ("hf:", "hf:a:b:c:d"):
        with pytest.raises(RowsError, match="expected hf:NAME"):
            parts(bad)


def test_its_own_splits_count_as_declared(library):
    assert declared("hf:me/parts") == {
        "test": "hf:me/parts::test",
        "valid": "hf:me/parts::validation",
        "train": "hf:me/parts::train",
    }
    assert sizes("hf:me/parts") == {"train": 19, "valid": 4, "test": 9}, "each part has one row without a label"


def test_one_split_is_divided(library):
    assert sum(sizes("hf:me/one").values()) == 39
    assert min(sizes("hf:me/one").values()) > 2
    assert sizes({"test": "hf:me/parts::extra", "train": "hf:me/one"})["test"] == 0


def test_numbers_become_names(library):
    rows = [row for _, row in open_source("hf:me/parts::train").scan()]
    assert [row.values["label"] for row in rows[:3]] == [None, "garden", "cars"]
    assert rows[2].where == "hf:me/parts::train, row 2"


def test_folders_are_never_looked_up_on_the_hub(library, tmp_path):
    with pytest.raises(RowsError, match="no folder"):
        open_source(f"hf:{tmp_path}/nowhere")
    (tmp_path / "state.json").write_text("{}")
    assert len(list(open_source(f"hf:{tmp_path}").scan())) == 7
    with pytest.raises(RowsError, match="the data set has none; found test"):
        open_source(f"hf:{tmp_path}::test")


def test_what_cannot_be_loaded_is_one_line(library):
    with pytest.raises(RowsError, match=r"cannot load the data set no/such: Couldn't reach the hub"):
        open_source("hf:no/such")
    with pytest.raises(RowsError, match="expected one of the splits train, validation, test, extra at the end, found none"):
        open_source("hf:me/parts")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RowsError, match=r"pip install 'svf-rl\[datasets\]'"):
        open_source("hf:me/one")


def test_the_real_library(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["cars", "garden"])})
    made = {
        split: datasets.Dataset.from_dict(
            {"text": [f"{split} {i}" for i in range(n)], "label": [i % 2 for i in range(n)]}, features=features
        )
        for split, n in (("train", 20), ("test", 10))
    }
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "saved"))
    assert sizes(f"hf:{tmp_path}/saved")["test"] == 10
    (tmp_path / "files").mkdir()
    made["train"].to_parquet(str(tmp_path / "files" / "train.parquet"))
    assert sum(sizes(f"hf:{tmp_path}/files").values()) == 20
