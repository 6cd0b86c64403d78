"""Chat data in which one prompt is spelt in two ways goes through every room as one prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sections import section
from tiny_models import tiny_tokenizer

from data_contracts.contract import check_rows
from tasks import preferences, render
from tasks.lib.annotation.agreement import verdicts
from tasks.lib.data import rules
from tasks.lib.data.labels import read_labelled
from tasks.lib.data.prompts import prompt_key
from tasks.lib.data.rows import Row, read_parquet
from tasks.lib.dpo.kto_labels import labels_of_pairs, labels_of_ratings
from tasks.lib.dpo.pairs import pairs_of, rows_by_prompt, tokenize_pairs
from tasks.lib.reward.groups import grouped
from tasks.lib.reward.reward_attributes import rated_answers
from tasks.lib.stage import Stage

ASKED = [f"Hello, what is NUMBER {n}?" for n in range(60)]


def in_lower_case_with_more_blanks(text: str) -> str:
    return text.lower().replace(" ", "  ")


SPELLINGS: tuple[Callable[[str], str], ...] = (str, in_lower_case_with_more_blanks)


def spelt(text: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": spell(text)}] for spell in SPELLINGS]


@pytest.mark.parametrize(
    ("one", "other"),
    [("Hello", "hello"), ("Hello there", " hello\n\tthere "), ("Straße", "STRASSE"), ("caf\u00e9", "cafe\u0301")],
)
def test_case_spacing_and_composition_make_no_other_prompt(one: str, other: str) -> None:
    first, second = ([{"role": "user", "content": text}] for text in (one, other))
    assert prompt_key(first) == prompt_key(second)


def test_other_words_roles_and_borders_make_another_prompt() -> None:
    hello, there = {"role": "user", "content": "hello"}, {"role": "user", "content": "there"}
    both = {"role": "user", "content": "hello there"}
    prompts = [
        [hello],
        [there],
        [both],
        [hello, there],
        [{**hello, "role": "system"}],
        [{**hello, "content": "hello!"}],
    ]
    assert len({prompt_key(prompt) for prompt in prompts}) == len(prompts)


@pytest.fixture
def instructions(workspace: Path) -> list[Row]:
    """What render makes of a ready-made set of conversations."""
    folder = Path("data/raw/chat")
    folder.mkdir(parents=True)
    chats = [
        {"messages": [*messages, {"role": "assistant", "content": f"It is {n}."}]}
        for n, text in enumerate(ASKED)
        for messages in spelt(text)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    (folder / "source.yaml").write_text(
        "file: chat/rows.jsonl\nformat: jsonl\nlicense: CC0-1.0\ncluster: chat\ntask: chat\nshape: messages\n"
    )
    params: dict[str, Any] = {
        **{"raw": "data/raw", "sources": "data/raw", "templates": "templates", "heldout_templates": []},
        **{"heldout_clusters": [], "templates_per_row": 1, "max_per_task": 1000, "total": None, "show": 0},
        **{"max_per_task_evaluation": 100, "commercial": True},
        "shares": {"train": 0.4, "preference": 0.2, "policy": 0.1, "validation": 0.1, "test": 0.2},
    }
    render.run(section("render", **params), Stage("render"))
    return read_parquet(Path("data/instructions/rows.parquet"))


def splits_of(rows: list[Row], prompt: str = "messages", split: str = "split") -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(prompt_key(row[prompt]), set()).add(row[split])
    return found


def test_both_spellings_are_in_one_split_and_the_contract_holds(instructions: list[Row]) -> None:
    assert len(instructions) == 120
    assert {len(splits) for splits in splits_of(instructions).values()} == {1}
    assert not check_rows("instructions", {"instructions": instructions}).violated


def test_curation_drops_the_second_spelling(instructions: list[Row]) -> None:
    params = section("curate")
    assert len(rules.exact_duplicates(instructions, params).drop) == 60
    chosen = [
        {**row, "choices": ["yes", "no"], "label": "yes" if row["messages"][0]["content"].islower() else "no"}
        for row in instructions
    ]
    assert len(rules.contradictions(chosen, params).drop) == 120


def test_both_texts_of_a_classifiers_table_are_in_one_split(workspace: Path) -> None:
    texts = [spell(text) for text in ASKED for spell in SPELLINGS]
    lines = [json.dumps({"text": text, "label": "ab"[n // 2 % 2]}) for n, text in enumerate(texts)]
    Path("table.jsonl").write_text("\n".join(lines) + "\n")
    found: dict[str, set[str]] = {}
    for split, rows in read_labelled(Path("table.jsonl"), "chat", False).items():
        for row in rows:
            found.setdefault(" ".join(row.text.lower().split()), set()).add(split)
    assert {len(splits) for splits in found.values()} == {1} and len(found) == 60


@pytest.fixture
def rankings(workspace: Path) -> list[Row]:
    """What preferences makes of two annotators' rankings, of whom each saw another spelling."""
    folder = Path("data/annotations")
    folder.mkdir(parents=True)
    Path("data/raw/benchmarks").mkdir(parents=True)
    for annotator, spell in zip(("ada", "bo"), SPELLINGS, strict=True):
        lines = [{"prompt": spell(text), "answers": ["right", "wrong"], "ranks": [0, 1]} for text in ASKED]
        rows = "".join(json.dumps({**line, "annotator": annotator}) + "\n" for line in lines)
        (folder / f"{annotator}.jsonl").write_text(rows)
    preferences.run(section("preferences", annotators={}), Stage("preferences"))
    return [
        {**row, "split": split}
        for split in ("train", "heldout")
        for row in read_parquet(Path(f"data/preferences/{split}.parquet"))
    ]


def test_rankings_of_both_spellings_are_of_one_prompt(rankings: list[Row]) -> None:
    assert len(rankings) == 120
    assert {len(splits) for splits in splits_of(rankings, "prompt").values()} == {1}
    tables = {split: [r for r in rankings if r["split"] == split] for split in ("train", "heldout")}
    rows = {split: [{k: v for k, v in row.items() if k != "split"} for row in table] for split, table in tables.items()}
    assert not check_rows("rankings", rows).violated
    report = json.loads(Path("reports/preferences.json").read_text())
    assert (report["prompts"], report["agreement"]) == (60, 1.0)
    votes = verdicts({**row, "prompt_key": prompt_key(row["prompt"])} for row in rankings)
    assert {len(by_annotator) for by_annotator in votes.values()} == {2}


def test_reward_model_dpo_and_kto_see_one_prompt(rankings: list[Row]) -> None:
    groups = grouped(rankings)
    assert len(groups) == 60 and {len(group.ranks) for group in groups} == {2}
    pairs, facts = pairs_of(rankings, per_prompt=2)
    assert facts["prompts"] == len(pairs) == 60
    rows, _ = tokenize_pairs(tiny_tokenizer(), pairs, None, Path("pairs"))
    assert [len(group) for group in rows_by_prompt(rows)] == [1] * 60
    assert len(labels_of_pairs(pairs)) == 120


def test_ratings_of_both_spellings_are_averaged() -> None:
    values = (1.0, -1.0, 1.0, 1.0)
    prompts = [prompt for text in ASKED[:2] for prompt in spelt(text)]
    ratings = [
        {"prompt": prompt, "answer": "fine", "attribute": "thumb", "value": value}
        for prompt, value in zip(prompts, values, strict=True)
    ]
    labels = labels_of_ratings(ratings, "thumb")
    assert [(row["prompt"], row["label"]) for row in labels] == [(spelt(ASKED[1])[0], True)]  # the first is a draw
    assert sorted(each.values[0] for each in rated_answers(ratings, ["thumb"], tiny_tokenizer(), None)) == [0.0, 1.0]
