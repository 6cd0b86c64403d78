"""A source.yaml is checked before a row of it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.lib.data.sources import RawRow, Source, check_license, find_sources, inside, read_rows, read_source
from tasks.lib.stage import Problem

SOURCE = {
    "file": "rows.csv",
    "format": "csv",
    "license": "MIT",
    "cluster": "sentiment",
    "task": "review",
    "templates": "review",
    "fields": "{text: str, label: str}",
}


def rows_of(made: Source) -> list[RawRow]:
    return list(read_rows(made))


def source(folder: Path, rows: str = "text,label\nfine,good\nstale,bad\n", **changes: str | None) -> Source:
    folder.mkdir(exist_ok=True)
    (folder / "rows.csv").write_text(rows)
    keys = {k: v for k, v in {**SOURCE, **changes}.items() if v is not None}
    (folder / "source.yaml").write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
    return read_source(folder / "source.yaml", folder, "review", commercial=True)


BAD = {
    "no licence": ({"license": None}, "source.yaml: license is missing"),
    "an unknown licence": ({"license": "free"}, "license: expected an SPDX identifier"),
    "a non-commercial licence": ({"license": "CC-BY-NC-4.0"}, "CC-BY-NC-4.0 forbids commercial use"),
    "an unknown type": ({"fields": "{text: string, label: str}"}, "fields.text: expected one of str, int"),
    "a field that is not there": (
        {"fields": "{text: str, label: str, x: str}"},
        "rows.csv:2:x: expected str",
    ),
    "a field too many": ({"fields": "{text: str}"}, "rows.csv:2:label: expected only the fields text"),
    "a misspelt key": ({"licence": "MIT"}, "did you mean license?"),
    "a label outside the map": (
        {"labels": "{good: 1}"},
        "rows.csv:3:label: expected one of good, found 'bad'",
    ),
    "an empty label": (
        {"rows": "text,label\nfine, \n"},
        "rows.csv:2:label: expected a label, found an empty",
    ),
    "a label that never occurs": (
        {"labels": "{good: 1, bad: 0, odd: 2}"},
        "the label 2 of `labels` is in no row",
    ),
    "inputs that are no fields": ({"inputs": "[title]"}, "title is not among the fields text, label"),
    "a renamed field that is no field": ({"rename": "{label: class}"}, "class is not among the fields"),
    "a path that leads out": ({"file": "../../etc/passwd"}, "file: expected a path inside"),
    "a file that is not there": (
        {"file": "none.csv"},
        "source.yaml: file: expected none.csv in the folder render.raw",
    ),
    "an unknown measure": ({"measure": "bleu"}, "source.yaml: measure: expected exact, normalised, number, contains,"),
    "another key than regex": ({"measure": "{regexp: a}"}, "or {regex: PATTERN}, found"),
    "a broken pattern": ({"measure": "{regex: '('}"}, "measure.regex: '(' is not a regular expression: "),
    "an absolute path": ({"file": "/etc/passwd"}, "file: expected a path inside"),
}


@pytest.mark.parametrize("changes, message", BAD.values(), ids=BAD)
def test_a_bad_source_is_a_problem_that_names_it(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Problem) as caught:
        rows_of(source(tmp_path / "a", **changes))
    assert message in str(caught.value)


def test_an_unlabelled_file_is_a_problem(tmp_path: Path) -> None:
    same = "text,label\n" + "".join(f"row {i},0\n" for i in range(20))
    with pytest.raises(Problem, match=r"rows\.csv: label: expected labels that differ, found '0' in all 20 rows"):
        rows_of(source(tmp_path / "a", same))
    with pytest.raises(Problem, match=r"rows\.csv:2:label: expected a label of at least 0, found -1"):
        rows_of(source(tmp_path / "a", "text,label\nx,-1\ny,0\n", fields="{text: str, label: int}"))


def test_fields_are_renamed_mapped_and_completed(tmp_path: Path) -> None:
    made = source(
        tmp_path / "a",
        "sentence,label\nfine,1\nstale,2\n",
        rename="{sentence: text}",
        labels="{'1': 0, '2': 1}",
        constants="{tone: plain}",
    )
    assert [row.fields for row in rows_of(made)] == [
        {"text": "fine", "label": 0, "tone": "plain"},
        {"text": "stale", "label": 1, "tone": "plain"},
    ]
    assert made.fields == ["text", "label", "tone"]
    assert rows_of(made)[1].where.endswith("rows.csv:3")


def test_content_is_the_inputs_without_case_and_spacing(tmp_path: Path) -> None:
    rows = 'text,label,style\nA fine  film,good,x\n"a FINE film ",bad,y\n'
    made = source(tmp_path / "a", rows, fields="{text: str, label: str, style: str}", inputs="[text]")
    first, second = rows_of(made)
    assert first.content == second.content and first.id != second.id
    assert first.text == "A fine  film"
    by_default = source(tmp_path / "b", rows, fields="{text: str, label: str, style: str}")
    assert rows_of(by_default)[0].text == "A fine  film\nx"


def test_a_limit_keeps_the_same_rows_when_others_come(tmp_path: Path) -> None:
    rows = [f"row {i},{i % 2}\n" for i in range(40)]
    few = rows_of(source(tmp_path / "a", "text,label\n" + "".join(rows[:30]), limit="10"))
    more = rows_of(source(tmp_path / "b", "text,label\n" + "".join(rows), limit="10"))
    assert len(few) == len(more) == 10
    old = {row.text for row in more} & {row.partition(",")[0] for row in rows[:30]}
    assert old <= {row.text for row in few}


def test_licences_and_folders(tmp_path: Path) -> None:
    check_license("LicenseRef-Acme", "here", commercial=True)
    check_license("CC-BY-NC-4.0", "here", commercial=False)
    with pytest.raises(Problem, match=r"expected folders with a source\.yaml"):
        find_sources(tmp_path / "none")
    assert inside(Path("a"), "b/c", "here") == Path("a/b/c")


def test_the_shared_tasks_are_read_through_renames_and_label_maps(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "source.yaml").write_text(
        "file: tasks/agnews_test.jsonl\nformat: jsonl\nlicense: MIT\ncluster: topic\ntask: ag_news\n"
        "templates: ag_news\nfields: {text: str, label: str}\nrename: {sentence: text}\n"
        "labels: {'1': 0, '2': 1, '3': 2, '4': 3}\nlimit: 50\n"
    )
    made = read_source(tmp_path / "source.yaml", shared, "ag_news", commercial=True)
    assert len(rows_of(made)) == 50 and {row.fields["label"] for row in rows_of(made)} == {0, 1, 2, 3}
    unlabelled = (tmp_path / "source.yaml").read_text().replace("agnews_test", "sst2_test")
    (tmp_path / "source.yaml").write_text(unlabelled.replace("labels: {'1': 0, '2': 1, '3': 2, '4': 3}\n", ""))
    with pytest.raises(Problem, match=r"sst2_test\.jsonl: label: expected labels that differ"):
        rows_of(read_source(tmp_path / "source.yaml", shared, "sst2", commercial=True))


def test_bad_rows_are_set_aside_up_to_a_share(tmp_path: Path) -> None:
    rows = "text,label\n" + "".join(f"row {i},{'good' if i % 2 else 'bad'}\n" for i in range(30))
    broken = rows + "one,two,three\nodd,good\n"
    found: list[dict[str, str]] = []
    made = source(tmp_path / "a", broken, on_bad_row="quarantine", max_bad_share="0.1")
    assert len(list(read_rows(made, found))) == 31
    assert [entry["source"] for entry in found] == ["review"]
    assert "rows.csv:32: expected 2 fields, found 3: 'one,two,three'" in found[0]["problem"]
    with pytest.raises(Problem, match=r"rows\.csv:32: .*; 1 of 32 rows are bad, more than max_bad_share 0\.01"):
        rows_of(source(tmp_path / "b", broken, on_bad_row="quarantine"))
    with pytest.raises(Problem, match=r"rows\.csv:32: expected 2 fields"):
        rows_of(source(tmp_path / "c", broken))


def test_a_label_outside_the_map_can_be_set_aside_too(tmp_path: Path) -> None:
    made = source(
        tmp_path / "a",
        "text,label\nx,good\ny,bad\nz,error\n",
        labels="{good: 1, bad: 0}",
        on_bad_row="quarantine",
        max_bad_share="0.5",
    )
    assert [row.fields["label"] for row in rows_of(made)] == [1, 0]


def test_a_file_without_header_takes_its_names_from_the_fields(tmp_path: Path) -> None:
    made = source(tmp_path / "a", "fine,good\nstale,bad\n", header="false")
    assert [row.fields["text"] for row in rows_of(made)] == ["fine", "stale"]
    assert rows_of(made)[0].where.endswith("rows.csv:1")


def test_a_ready_made_set_needs_a_shape_only(tmp_path: Path) -> None:
    (tmp_path / "seeds.jsonl").write_text(
        '{"id": 1, "task": "Go", "instances": [{"input": "", "output": "x"}, {"input": "1", "output": "y"}]}\n'
    )
    about = "format: jsonl\nlicense: MIT\ncluster: c\ntask: seeds\nfile: seeds.jsonl\nshape: self_instruct\n"
    (tmp_path / "source.yaml").write_text(about + "rename: {task: instruction}\n")
    first, second = rows_of(read_source(tmp_path / "source.yaml", tmp_path, "seeds", commercial=True))
    assert (first.text, first.fields["answer"]) == ("Go", "x")
    assert second.text == "Go\n\n1" and second.where.endswith("seeds.jsonl:1:instances.2")
    (tmp_path / "source.yaml").write_text(about + "templates: toy\n")
    with pytest.raises(Problem, match="templates cannot be combined with shape"):
        read_source(tmp_path / "source.yaml", tmp_path, "seeds", commercial=True)
    (tmp_path / "source.yaml").write_text(about.replace("shape: self_instruct\n", ""))
    with pytest.raises(Problem, match="fields is missing; give templates and fields, or a shape"):
        read_source(tmp_path / "source.yaml", tmp_path, "seeds", commercial=True)


def test_a_measure_is_a_word_or_a_pattern(tmp_path: Path) -> None:
    assert source(tmp_path / "a").measure == "exact"
    assert source(tmp_path / "b", measure="number").measure == "number"
    assert source(tmp_path / "c", measure="{regex: 'is (?P<label>.+)'}").measure == "regex:is (?P<label>.+)"
