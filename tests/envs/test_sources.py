"""Readers against files written here, whose rows are known."""

import csv
import gzip
import io
import json
import multiprocessing
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs import sources
from envs.sources import RowsError, Unusable, open_source

ROWS = [{"question": f"Züri {i}?\nTwo lines, 'quotes' \"and\" 東京", "answer": str(i)} for i in range(7)]


def write(folder: Path, name: str, rows=ROWS) -> str:
    """A file of these rows in the format of its ending."""
    text = io.StringIO(newline="")
    plain = name.removesuffix(".gz")
    if plain.endswith((".csv", ".tsv")):
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if plain.endswith(".tsv") else ",")
        writer.writeheader()
        writer.writerows(rows)
    elif plain.endswith(".json"):
        json.dump(rows, text, indent=1)
    else:
        text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    data = text.getvalue().encode()
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(path)


def values(path: str) -> list[dict]:
    return [dict(row.values) for _, row in open_source(path).scan()]


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("ending", ["jsonl", "ndjson", "json", "csv", "tsv"])
def test_every_format_gives_the_rows_and_any_row_again(tmp_path, ending, gz):
    source = open_source(write(tmp_path, f"data.{ending}{gz}"))
    scanned = list(source.scan())
    assert [dict(row.values) for _, row in scanned] == ROWS
    assert [dict(source.at(address).values) for address, _ in reversed(scanned)] == ROWS[::-1]
    assert list(source.scan()) == scanned


def test_lines_are_counted_as_an_editor_does(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"a": 1}\n\n{"a": 2}')
    assert [row.where.split(", ")[1] for _, row in open_source(str(tmp_path / "a.jsonl")).scan()] == ["line 2", "line 4"]
    (tmp_path / "a.csv").write_text('a,b\r\n1,"x\r\ny"\r\n\r\n2,z\r\n')
    assert [row.where.split(", ")[1] for _, row in open_source(str(tmp_path / "a.csv")).scan()] == ["line 2", "line 5"]
    assert values(str(tmp_path / "a.csv")) == [{"a": "1", "b": "x\r\ny"}, {"a": "2", "b": "z"}]


def test_a_byte_order_mark_and_json_lines_named_json_are_understood(tmp_path):
    for name, text in [("a.jsonl", '{"a": "1"}\n'), ("b.json", '{"a": "1"}\n'), ("c.json", ' [{"a": "1"}]'), ("d.csv", "a\n1\n")]:
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert values(str(tmp_path / name)) == [{"a": "1"}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a\.jsonl, line 2: not JSON \(.*column 7\)"),
        ("a.jsonl", b'{"a": 1}\n\xff\n', r"a\.jsonl, line 2: not UTF-8"),
        ("a.jsonl", b"[1, 2]\n", r"line 1: expected an object .* found a list"),
        ("a.jsonl", b"[" * 100_000, r"line 1: not JSON"),
        ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}", r"line 1: not JSON"),
        ("a.json", b'[{"a": 1},\n 3]', r"a\.json, item 2: expected an object .* found a int"),
        ("a.json", b'[{"a": 1},\n', r"a\.json: not JSON"),
        ("a.csv", b"a,b\n1,2\n3\n", r"a\.csv, line 3: expected 2 fields as in the header, found 1"),
        ("a.csv", b"a,b\n1,2,3\n", r"line 2: expected 2 fields .* found 3"),
        ("a.csv", b'a,b\n1,2\n"3,4\n5,6\n', r"a\.csv, line 3: not CSV"),
        ("a.csv", b"a,b\n1,\xff\n", r"line 2: not UTF-8"),
        ("a.csv", b"a,a\n1,2\n", "different column names"),
        ("a.csv", b"", "different column names"),
        ("a.txt", b"hello", "cannot tell what kind of file"),
        ("a.jsonl.gz", b"not gzip", "cannot unpack"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000)[:-20], "cannot unpack"),
    ],
)
def test_what_cannot_be_read_names_its_file_and_line(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(RowsError, match=message) as error:
        list(open_source(str(tmp_path / name)).scan())
    assert "\n" not in str(error.value)


def test_bad_paths_say_what_is_there(tmp_path):
    write(tmp_path, "train.jsonl")
    with pytest.raises(RowsError, match=r"no file .*trian\.jsonl; the folder has train\.jsonl"):
        open_source(str(tmp_path / "trian.jsonl"))
    with pytest.raises(RowsError, match="no file .*nowhere"):
        open_source(str(tmp_path / "nowhere" / "a.jsonl"))
    with pytest.raises(RowsError, match="found a folder"):
        open_source(str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path):
    path = write(tmp_path, "a.jsonl")
    os.chmod(path, 0)
    with pytest.raises(RowsError, match="cannot read .*Permission denied"):
        list(open_source(path).scan())


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_ROW", 1 << 20)
    (tmp_path / "a.jsonl").write_bytes(b"x" * (2 << 20))
    with pytest.raises(RowsError, match="longer than 1 MiB"):
        list(open_source(str(tmp_path / "a.jsonl")).scan())


def test_a_large_array_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_ARRAY", 100)
    with pytest.raises(RowsError, match=r"write it as JSON lines"):
        open_source(write(tmp_path, "a.json"))


def test_a_file_that_changes_under_the_reader_is_noticed(tmp_path):
    path = write(tmp_path, "a.jsonl")
    source = open_source(path)
    address = next(iter(source.scan()))[0]
    os.utime(path, ns=(1, 1))
    with pytest.raises(RowsError, match="has changed"):
        source.at(address)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz"])
def test_a_large_file_is_never_whole_in_memory(tmp_path, name):
    path = write(tmp_path, name, [{"question": "x" * 1000, "answer": str(i)} for i in range(10_000)])
    tracemalloc.start()
    try:
        assert sum(1 for _ in open_source(path).scan()) == 10_000
        assert tracemalloc.get_traced_memory()[1] < 5 << 20
    finally:
        tracemalloc.stop()


def test_a_fork_reads_beside_its_parent(tmp_path):
    source = open_source(write(tmp_path, "a.jsonl.gz", [{"a": str(i)} for i in range(2000)]))
    addresses = [address for address, _ in source.scan()]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_column_a, [(source, address) for address in addresses]) == [str(i) for i in range(2000)]
    assert source.at(addresses[-1]).values == {"a": "1999"}


def _column_a(job):
    source, address = job
    return source.at(address).values["a"]


def test_temporary_files_go_when_the_process_goes(tmp_path):
    import subprocess
    import sys

    path = write(tmp_path, "a.jsonl.gz")
    script = f"from envs.sources import open_source; print(open_source({path!r})._file)"
    environment = os.environ | {"PYTHONPATH": str(Path(sources.__file__).parent.parent), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert str(tmp_path) in done.stdout
    assert not Path(done.stdout.strip()).exists()


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.fixed_dictionaries({"a": TEXT, "b": TEXT}), min_size=1, max_size=6))
def test_what_python_writes_is_read_back(tmp_path, rows):
    assert values(write(tmp_path, "a.jsonl", rows)) == rows
    kept = [row for row in rows if not row["a"].startswith("\ufeff")]
    if kept:
        assert values(write(tmp_path, "a.csv", kept)) == kept


def test_a_value_as_text():
    row = sources.Row({"n": 72, "f": 0.5, "t": "x", "blank": " ", "none": None, "list": [1]}, "here")
    assert [row.text(c) for c in "nft"] == ["72", "0.5", "x"]
    for column, reason in [("blank", "nothing in"), ("none", "nothing in"), ("list", "holds a list"), ("other", "no column")]:
        with pytest.raises(Unusable, match=reason):
            row.text(column)
