"""Claims about the stage that turns annotation exports into rankings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sections import section

from tasks import preferences
from tasks.lib.data.prompts import prompt_key
from tasks.lib.data.rows import RANKING, read_parquet
from tasks.lib.importers.rankings import RULES, Dropped
from tasks.lib.stage import Problem, Stage

FOLDER = Path("data/annotations")


def run(**params: Any) -> dict[str, Any]:
    Path("data/raw/benchmarks").mkdir(parents=True, exist_ok=True)
    preferences.run(section("preferences", **{"annotators": {}, **params}), Stage("preferences"))
    return json.loads(Path("reports/preferences.json").read_text())


def write(rows: list[dict[str, Any]], name: str = "rankings.jsonl") -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def rankings(prompts: int = 40) -> list[dict[str, Any]]:
    """Three annotators; the third turns every fourth prompt round."""
    rows = []
    for n in range(prompts):
        for who in (1, 2, 3):
            ranks = [2, 1, 0] if who == 3 and n % 4 == 0 else [0, 1, 2]
            rows.append({"prompt": f"Q{n}", "answers": ["x", "y", "z"], "annotator": str(who), "ranks": ranks})
    return rows


def test_no_prompt_stands_in_both_splits(workspace):
    write(rankings())
    figures = run(heldout_share=0.3)
    train, heldout = (read_parquet(Path(f"data/preferences/{split}.parquet")) for split in ("train", "heldout"))
    assert len(train) + len(heldout) == 120 == figures["rankings"]
    assert not {prompt_key(row["prompt"]) for row in train} & {prompt_key(row["prompt"]) for row in heldout}
    assert set(train[0]) == set(RANKING.names)


def test_agreement_is_reported_by_annotator(workspace):
    write(rankings())
    figures = run(annotators={"3": "cleo"}, heldout_share=0.3)
    assert figures["agreement_1"] == figures["agreement_2"] == 1.0  # where 2 and cleo differ there is no majority
    assert figures["agreement_cleo"] == 0.75
    assert figures["agreement_cleo_low"] < 0.75 < figures["agreement_cleo_high"] < 0.9
    assert figures["krippendorff_alpha_low"] < figures["krippendorff_alpha"] < figures["krippendorff_alpha_high"]
    assert figures["agreement_source_rankings"] == pytest.approx((1 + 1 + 0.75) / 3, abs=0.03)
    assert figures["low_agreement"] == "cleo" and figures["reliability_1"] > figures["reliability_cleo"]
    assert 0.5 < figures["krippendorff_alpha"] < 1
    assert Path("reports/plots/preferences.png").exists() and Path("reports/plots/preferences.csv").exists()


def test_what_is_dropped_is_told_and_kept(workspace, capsys):
    write([*rankings(), {"prompt": "Q", "answers": ["x", "x "], "ranks": [0, 1]}])
    assert run(heldout_share=0.3)["dropped_equal_answers"] == 1
    assert "1 dropped, equal_answers: first data/annotations/rankings.jsonl:121" in capsys.readouterr().out
    (row,) = read_parquet(Path("data/preferences/dropped.parquet"))
    assert (row["id"], row["rule"]) == ("data/annotations/rankings.jsonl:121", "equal_answers")


def test_a_rule_that_only_one_importer_has_is_counted_after_the_others():
    dropped = [Dropped("f:1", "cycle", ""), Dropped("f:2", "a_rule_of_its_own", ""), Dropped("f:3", "cycle", "")]
    figures = preferences._dropped_figures(dropped)
    assert [*figures] == [f"dropped_{rule}" for rule in (*RULES, "a_rule_of_its_own")]
    assert (figures["dropped_cycle"], figures["dropped_cancelled"], figures["dropped_a_rule_of_its_own"]) == (2, 0, 1)


def test_several_tools_become_one_format(workspace):
    write(rankings())
    write([{"prompt": f"P{n}", "chosen": "a", "rejected": "b"} for n in range(10)], "pairs.jsonl")
    figures = run(heldout_share=0.3)
    assert (figures["files"], figures["rankings"]) == (2, 130)


def test_the_same_exports_give_the_same_bytes(workspace):
    write(rankings())
    outputs = ["data/preferences/train.parquet", "reports/preferences.json", "reports/plots/preferences.png"]
    run(heldout_share=0.3)
    first = [Path(file).read_bytes() for file in outputs]
    run(heldout_share=0.3)
    assert [Path(file).read_bytes() for file in outputs] == first


def test_the_same_export_again_changes_nothing(workspace):
    write(rankings())
    run(heldout_share=0.3)
    before = Path("data/preferences/train.parquet").read_bytes()
    write(rankings(), "the_same_under_another_name.jsonl")
    assert run(heldout_share=0.3)["files"] == 1
    assert Path("data/preferences/train.parquet").read_bytes() == before
    write([*rankings(), *rankings(1)], "rankings.jsonl")  # a later export holds the earlier rankings too
    (FOLDER / "the_same_under_another_name.jsonl").unlink()
    assert run(heldout_share=0.3)["dropped_repeated"] == 3
    assert Path("data/preferences/train.parquet").read_bytes() == before


def test_a_later_export_adds_to_the_earlier_rankings_and_moves_none(workspace):
    def written(split: str) -> dict[str, dict[str, Any]]:
        return {row["id"]: row for row in read_parquet(Path(f"data/preferences/{split}.parquet"))}

    write(rankings(40), "round-1.jsonl")
    run(heldout_share=0.3)
    before = {split: written(split) for split in ("train", "heldout")}
    write(rankings(60), "round-2.jsonl")  # the project once more, with twenty prompts that are new
    figures = run(heldout_share=0.3)
    assert (figures["rankings"], figures["dropped_repeated"]) == (180, 120)
    for split, rows in before.items():
        assert rows.items() <= written(split).items()


def test_a_stated_format_needs_its_file(workspace):
    write(rankings())
    with pytest.raises(Problem, match=r"preferences\.formats: other.json is not a file in"):
        run(formats={"other.json": "pairs"})


def test_without_exports_or_without_rankings_it_says_so(workspace):
    with pytest.raises(Problem, match="data/annotations is not a folder; run annotate"):
        run()
    FOLDER.mkdir(parents=True)
    with pytest.raises(Problem, match="holds no export"):
        run()
    write([{"prompt": "Q", "answers": ["x", "x"], "ranks": [0, 1]}])
    with pytest.raises(Problem, match="no rankings for train"):
        run()
    assert not Path("data/preferences").exists()


def test_a_file_of_unknown_format_is_named(workspace):
    write(rankings())
    write([{"text": "t", "label": "l"}], "thumbs.jsonl")
    with pytest.raises(Problem, match=r"thumbs.jsonl: expected preferences .* found rows with the fields text, label"):
        run()
