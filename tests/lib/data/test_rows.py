"""The strict reader names file, row and field of everything that is not clean."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.lib.data import tables, text_files
from tasks.lib.data.rows import LEDGER, content_id, read_parquet, read_table, write_parquet
from tasks.lib.stage import Problem

FIELDS = {"text": str, "label": int}
GOOD = b'{"text": "fine", "label": 1}\n'

BAD_LINES = {
    "broken JSON": (
        b'{"text": "a", "label": }\n',
        "2: expected valid JSON, found expecting value at column 24",
    ),
    "truncated last line": (b'{"text": "a", "lab', "2: expected valid JSON, found unterminated string"),
    "truncated says so": (b'{"text": "a", "lab', "is the file cut off?"),
    "two values on a line": (b'{"text": "a", "label": 1} {}\n', "2: expected valid JSON, found extra data"),
    "not an object": (b"[1, 2]\n", "2: expected a JSON object, found list [1, 2]"),
    "empty line": (b"\n" + GOOD, "2: expected a JSON object, found an empty line"),
    "invalid UTF-8": (
        b'{"text": "a\xff", "label": 1}\n',
        "2: expected UTF-8 text, found the byte 0xff at column 12",
    ),
    "lone surrogate": (
        b'{"text": "\\ud800", "label": 1}\n',
        "2:text: expected Unicode text, found a lone surr",
    ),
    "NUL": (
        b'{"text": "a\\u0000b", "label": 1}\n',
        "2:text: expected text without NUL characters, found 'a\\x00b'",
    ),
    "duplicate key": (
        b'{"text": "a", "text": "b", "label": 1}\n',
        "2:text: expected each key once, found it twice",
    ),
    "NaN": (b'{"text": "a", "label": NaN}\n', "2:label: expected a finite 64-bit number, found NaN"),
    "infinite by overflow": (b'{"text": "a", "label": 1e999}\n', "2:label: expected a finite 64-bit number"),
    "integer over 2^63": (
        b'{"text": "a", "label": 9223372036854775808}\n',
        "2:label: expected a 64-bit integer",
    ),
    "a million digits": (
        b'{"text": "a", "label": ' + b"9" * 10**6 + b"}\n",
        "2:label: expected a finite 64-bit",
    ),
    "wrong type": (b'{"text": "a", "label": "1"}\n', "2:label: expected int, found str '1'"),
    "truth is no number": (b'{"text": "a", "label": true}\n', "2:label: expected int, found bool True"),
    "a fraction is no integer": (b'{"text": "a", "label": 1.0}\n', "2:label: expected int, found float 1.0"),
    "null": (b'{"text": null, "label": 1}\n', "2:text: expected str, found null"),
    "missing field": (b'{"text": "a"}\n', "2:label: expected int, found no such field"),
    "extra field": (
        b'{"text": "a", "label": 1, "note": ""}\n',
        "2:note: expected only the fields text, label",
    ),
    "deep nesting": (b"[" * 100_000 + b"\n", "2: expected JSON of a sane depth"),
    "giant line": (
        b'{"text": "' + b"a" * (17 * 2**20) + b'", "label": 1}\n',
        "2: expected a line of at most",
    ),
}


@pytest.mark.parametrize("line, message", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named_by_file_row_and_field(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + line)
    with pytest.raises(Problem) as caught:
        list(read_table(path, FIELDS))
    assert f"{path}:{message}" in str(caught.value) or message in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))
    assert "\n" not in str(caught.value)


BAD_CSV = {
    "too few fields": ("text,label\na\n", "2: expected 2 fields, found 1: 'a'"),
    "too many fields": ("text,label\na,1,2\n", "2: expected 2 fields, found 3"),
    "not a number": ("text,label\na,one\n", "2:label: expected int, found str 'one'"),
    "over 2^63": ("text,label\na,9223372036854775808\n", "2:label: expected a 64-bit integer"),
    "line of the file, not of the table": ('text,label\n"a\nb",1\nc,x\n', "4:label: expected int"),
    "open quote": ('text,label\n"a,1\nb,2\n', "2: expected a row of separated values"),
    "header twice": ("text,text\na,1\n", "1: expected a header of distinct names"),
    "header only": ("text,label\n", " expected rows, found an empty file"),
    "missing column": ("text\na\n", "2:label: expected int, found no such field among 'text'"),
    "other separator": ("text;label\na;1\n", "2:text: expected str, found no such field among 'text;label'"),
}


@pytest.mark.parametrize("content, message", BAD_CSV.values(), ids=BAD_CSV)
def test_a_bad_csv_row_is_named_by_the_line_of_the_file(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content)
    with pytest.raises(Problem) as caught:
        list(read_table(path, FIELDS))
    assert f"{path}:{message}" in str(caught.value)


BAD_DOCUMENTS = {
    "the broken line": (b'[{"text": "a", "label": 1},\n{"text": }]', "rows.json:2: expected valid JSON"),
    "cut off": (b'[{"text": "a", "label": 1},\n', "is the file cut off?"),
    "the row of a bad value": (
        b'[{"text": "a", "label": 1}, {"text": "b", "label": "2"}]',
        "rows.json:2:label:",
    ),
    "the row of a repeated key": (
        b'[{"text": "a", "text": "b", "label": 1}]',
        "rows.json:1:text: expected each key",
    ),
    "no rows inside": (b'{"rows": []}', 'rows.json: expected a list of objects or {"examples": [...]}'),
    "an empty list": (b"[]", "rows.json: expected rows, found an empty file"),
    "an empty file": (b"", "rows.json: expected rows, found an empty file"),
    "UTF-16": ('[{"text": "a"}]'.encode("utf-16"), "rows.json:1: expected UTF-8 text, found the byte 0xff"),
}


@pytest.mark.parametrize("content, message", BAD_DOCUMENTS.values(), ids=BAD_DOCUMENTS)
def test_a_bad_document_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(Problem) as caught:
        list(read_table(path, FIELDS))
    assert message in str(caught.value)


def test_a_json_list_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f'été {n}, ["x"]', "label": n, "nested": {"a": [n, {}]}} for n in range(20)]
    path = tmp_path / "rows.json"
    for size in (1, 7, 64, 10_000):
        monkeypatch.setattr(text_files, "PIECE_BYTES", size)
        for indent in (None, 2):
            path.write_text(json.dumps(rows, ensure_ascii=False, indent=indent), encoding="utf-8")
            assert list(tables.FORMATS["json"](path, None)) == list(enumerate(rows, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            b'[{"a": 1},\n {"a": 2}\n {"a": 3}]',
            "rows.json:3: expected valid JSON, found expecting ',' delimiter at column 2",
        ),
        (b'[{"a": 1}, {"a": 2}', r"rows.json:1: .* at column 20: .*\(is the file cut off\?\)"),
        (b'[{"a": 1},\n', r"rows.json:2: .*\(is the file cut off\?\)"),
        (b'[{"a": 1}, ]', "rows.json:1: .*expecting value at column 12"),
        (b'[{"a": 1}] {"b": 2}', "rows.json:1: .*extra data at column 12"),
        (
            b'[{"a": "\xc3\xa9"},\n{"a": "\xe9"}]',
            "rows.json:2: expected UTF-8 text, found the byte 0xe9 at column 8",
        ),
        (b'[{"a": "\xc3', "rows.json:1: expected UTF-8 text, found the byte 0xc3 at column 9"),
    ],
)
def test_an_error_in_a_json_list_has_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes, message: str
) -> None:
    (tmp_path / "rows.json").write_bytes(text)
    for size in (1, 5, 10_000):
        monkeypatch.setattr(text_files, "PIECE_BYTES", size)
        with pytest.raises(Problem, match=message):
            list(tables.FORMATS["json"](tmp_path / "rows.json", None))


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [{"text": 'a, "quoted"\nline', "label": 1}, {"text": "naïve ☃ ||| {{name}}", "label": -2}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.json").write_text(json.dumps({"canary": "x", "examples": rows}))
    (tmp_path / "c.csv").write_text('\ufefftext,label\n"a, ""quoted""\nline",1\nnaïve ☃ ||| {{name}},-2\n')
    (tmp_path / "d.tsv").write_text('text\tlabel\n"a, ""quoted""\nline"\t1\nnaïve ☃ ||| {{name}}\t-2\n')
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "f.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert [row for _, row in read_table(path, FIELDS)] == rows, path.name


def test_a_gzip_bomb_and_a_cut_gzip_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "BOMB_BYTES", 2**16)
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD * 100_000))
    with pytest.raises(Problem, match="a gzip bomb"):
        list(read_table(path, FIELDS))
    path.write_bytes(gzip.compress(GOOD)[:-9])
    with pytest.raises(Problem, match="expected a whole gzip file"):
        list(read_table(path, FIELDS))


def test_secrets_never_reach_a_message(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": "hf_abcdefghijklmnopqrstuvwx"}\n')
    with pytest.raises(Problem) as caught:
        list(read_table(path, FIELDS))
    assert "found str '<access token>'" in str(caught.value)


def test_missing_files_and_unknown_formats_say_so(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="expected a file of rows, found nothing"):
        list(read_table(tmp_path / "none.jsonl"))
    (tmp_path / "rows.xml").write_text("<a/>")
    with pytest.raises(Problem, match="expected a format of jsonl"):
        list(read_table(tmp_path / "rows.xml"))


def test_parquet_is_written_whole_with_equal_bytes_and_the_schema_is_strict(tmp_path: Path) -> None:
    rows = [{"id": content_id(i), "rule": "x", "detail": "y" * i} for i in range(1000)]
    write_parquet(tmp_path / "a.parquet", rows, LEDGER)
    write_parquet(tmp_path / "b.parquet", rows, LEDGER)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert read_parquet(tmp_path / "a.parquet") == rows
    before = (tmp_path / "a.parquet").read_bytes()
    for bad in ({"id": "1", "rule": "x"}, {"id": "1", "rule": None, "detail": ""}):
        with pytest.raises(TypeError):
            write_parquet(tmp_path / "a.parquet", [bad], LEDGER)
    assert (tmp_path / "a.parquet").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_a_damaged_or_missing_parquet_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with pytest.raises(Problem, match="does not exist"):
        read_parquet(path)
    write_parquet(path, [{"id": "1", "rule": "x", "detail": "y"}], LEDGER)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(Problem, match="expected a Parquet file"):
        read_parquet(path)
    with pytest.raises(Problem, match="expected a whole Parquet file"):
        list(read_table(path))


def test_content_id_depends_on_content_only() -> None:
    assert content_id({"a": 1, "b": "ü"}) == content_id({"b": "ü", "a": 1})
    assert len({content_id("a", "b"), content_id("ab"), content_id(["a", "b"]), content_id("a", 1)}) == 4


def test_the_shared_files_read_clean(shared: Path) -> None:
    assert sum(1 for _ in read_table(shared / "tasks/agnews_test.jsonl", {"sentence": str, "label": str})) == 7600
    assert sum(1 for _ in read_table(shared / "tasks/boolean_expressions.json")) == 250
    assert sum(1 for _ in read_table(shared / "tasks/self_instruct_seed_tasks.jsonl")) == 175


def test_arrow_files_streams_and_saved_data_sets_give_the_same_rows(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = [{"text": f"row {i}", "label": i} for i in range(5000)]
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(tmp_path / "file.arrow", table.schema) as file:
        file.write_table(table)
    with pa.ipc.new_stream(tmp_path / "stream.arrow", table.schema) as stream:
        stream.write_table(table)
    saved = Dataset(table)
    saved.save_to_disk(tmp_path / "saved", num_shards=3)
    DatasetDict(train=saved).save_to_disk(tmp_path / "splits")
    for name in ("file.arrow", "stream.arrow", "saved", "splits/train"):
        assert list(read_table(tmp_path / name, FIELDS)) == list(enumerate(rows, 1)), name
    with pytest.raises(Problem, match=r"splits: expected one split of it \(train\), found a folder of splits"):
        list(read_table(tmp_path / "splits"))
    with pytest.raises(Problem, match="expected a folder saved by datasets' save_to_disk, found no state"):
        (tmp_path / "empty").mkdir()
        list(read_table(tmp_path / "empty"))


def test_a_cut_arrow_file_is_a_problem(tmp_path: Path) -> None:
    table = pa.table({"text": ["a" * 100] * 100})
    with pa.ipc.new_stream(tmp_path / "rows.arrow", table.schema) as stream:
        stream.write_table(table)
    path = tmp_path / "rows.arrow"
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(Problem, match=r"rows\.arrow: expected a whole Arrow file or stream"):
        list(read_table(path))


def test_bad_rows_can_be_set_aside_and_a_broken_file_cannot(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [
        b'{"text": "a", "label": 1}',
        b'{"text": "b"}',
        b"{",
        b"",
        b'{"text": "\xff", "label": 1}',
        b"[" * 10**5,
        b'{"text": "c", "label": 3}',
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    bad: list[str] = []
    rows = list(read_table(path, FIELDS, bad=lambda problem: bad.append(str(problem))))
    assert [(number, row["text"]) for number, row in rows] == [(1, "a"), (7, "c")]
    assert [problem.removeprefix(f"{path}:")[:2] for problem in bad] == ["2:", "3:", "4:", "5:", "6:"]
    (tmp_path / "open.csv").write_text('text,label\n"a,1\nb,2\n')
    with pytest.raises(Problem, match="a quote that is not closed"):
        list(read_table(tmp_path / "open.csv", FIELDS, bad=lambda problem: None))
