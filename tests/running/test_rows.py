"""Rows of data: every kind of file, and what is wrong with one is told with the line."""

from __future__ import annotations

import csv
import json

import pytest

from merganser.errors import RequestError
from merganser.running import batches, pad, read_rows


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_kinds_of_files_hold_the_same_rows(tmp_path):
    rows = [{"text": 'a "b", c', "label": "x"}, {"text": "zwei\u2028Zeilen", "label": "y"}]
    lines = write(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in rows) + "\n\n")
    comma = write(tmp_path / "a.csv", 'text,label\n"a ""b"", c",x\nzwei\u2028Zeilen,y\n')
    tabs = write(tmp_path / "a.tsv", 'text\tlabel\n"a ""b"", c"\tx\nzwei\u2028Zeilen\ty\n')
    for path in (lines, comma, tabs):
        found = read_rows(path)
        assert [dict(row) for row in found] == rows
        assert found.columns == ("text", "label") and found.column("label") == ["x", "y"]
    assert read_rows(lines).digest != read_rows(comma).digest
    plain = read_rows(write(tmp_path / "a.txt", "\ufeffone\n\n  \ntwo \n"))
    assert plain.column("text") == ["one", "two "]


@pytest.mark.models
def test_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(
        pa.table({"text": ["a", "b"], "choices": [["x"], ["y", "z"]]}), tmp_path / "a.parquet"
    )
    assert read_rows(tmp_path / "a.parquet").column("choices") == [["x"], ["y", "z"]]
    write(tmp_path / "b.parquet", "no")
    with pytest.raises(RequestError, match="not Parquet"):
        read_rows(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "has no rows"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 is no JSON object"),
        ("a.csv", "a,b\n", "has no rows"),
        ("a.csv", "a,b\n1\n", "line 2 has 1 fields and the header 2"),
        ("a.csv", "a,a\n1,2\n", "two columns are called 'a'"),
        ("a.csv", 'a,b\n"1,2\n', "line 2"),
        ("a.csv", '"a"b,c\n1,2\n', "line 1"),
        ("a.txt", "\n \n", "has no rows"),
        ("a.xls", "a", "not a kind of data"),
    ],
)
def test_malformed_files(tmp_path, name, text, message):
    with pytest.raises(RequestError, match=message):
        read_rows(write(tmp_path / name, text))


def test_what_is_missing(tmp_path):
    with pytest.raises(RequestError, match="no such file"):
        read_rows(tmp_path / "none.jsonl")
    write(tmp_path / "train.jsonl", '{"text": "a"}\n')
    for name in ("tarin.jsonl", "train.json"):
        with pytest.raises(RequestError, match=r"no such file; did you mean .*train\.jsonl"):
            read_rows(tmp_path / name)
    with pytest.raises(RequestError, match="is a directory"):
        read_rows(tmp_path)
    (tmp_path / "latin.csv").write_bytes(b"a\n\xff\n")
    with pytest.raises(RequestError, match="not UTF-8"):
        read_rows(tmp_path / "latin.csv")
    rows = read_rows(write(tmp_path / "a.jsonl", '{"text": "a", "label": 0}\n{"text": "b"}\n'))
    with pytest.raises(RequestError, match="no column 'lable'; did you mean 'label'"):
        rows.column("lable")
    with pytest.raises(RequestError, match="1 of 2 rows have no 'label', the first is row 2"):
        rows.column("label")
    assert len(rows.head(1)) == 1 and rows.head(1).digest == rows.digest


def test_batches_hold_every_row_once():
    lengths = [5, 1, 5, 3, 1, 9]
    found = batches(lengths, 4)
    assert found == [[1, 4, 3, 0], [2, 5]]
    assert sorted(row for batch in found for row in batch) == list(range(6))


@pytest.mark.models
def test_padding():
    right, mask = pad([[1, 2], [3]], 9)
    assert right.tolist() == [[1, 2], [3, 9]] and mask.tolist() == [[1, 1], [1, 0]]
    left, mask = pad([[1, 2], [3]], 9, left=True)
    assert left.tolist() == [[1, 2], [9, 3]] and mask.tolist() == [[1, 1], [0, 1]]


def test_quotes_in_a_tsv_keep_their_rows(tmp_path):
    rows = ["text\tlabel", 'he said "so\t0', '"so\t1', 'and left"\t0', '"a ""b"" c"\t1', '"whole"\t0', "\t1"]
    (tmp_path / "d.tsv").write_text("\n".join(rows) + "\n")
    found = read_rows(tmp_path / "d.tsv")
    texts = ['he said "so', '"so', 'and left"', 'a "b" c', '"whole"', None]
    assert [row["text"] for row in found] == texts
    assert [row["label"] for row in found] == list("010101")


def test_a_tsv_whose_header_is_in_quotes_is_csv_with_tabs(tmp_path):
    with (tmp_path / "d.tsv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL)
        writer.writerows([["text", "label"], ["a\tb", "0"], ["c\nd", "1"]])
    assert [row["text"] for row in read_rows(tmp_path / "d.tsv")] == ["a\tb", "c\nd"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "label": 0, "text": "b"}', "line 2 is not JSON: the key 'text' is there twice"),
        ('{"text": {"a": 1, "a": 2}}', "the key 'a' is there twice"),
        (r'{"text": "half \ud83d of it"}', r"line 2: a text holds half of a surrogate pair \(\\ud83d\)"),
        (r'{"list": ["x", "\uDE00"]}', "half of a surrogate pair"),
    ],
)
def test_rows_that_would_lose_something(tmp_path, line, message):
    (tmp_path / "d.jsonl").write_text('{"text": "good \\ud83d\\ude00"}\n' + line + "\n")
    with pytest.raises(RequestError, match=message):
        read_rows(tmp_path / "d.jsonl")
