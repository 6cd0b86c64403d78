"""Rankings: how one annotator ranked the answers to one prompt. Ranks start at 0, equal ranks are a tie.

In the line they are judged as tokens too (ranking_tokens), in the same process.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import great_expectations.expectations as gxe
import pandas as pd

from data_contracts import columns, ranking_tokens
from data_contracts.columns import Judgement
from tasks.lib.data.rows import RANKING, Row, content_id

EXAMPLE = {
    "id": "e80b5017098950fc",
    "prompt": [{"role": "user", "content": "Review: the film was superb. Good or bad?"}],
    "answers": ["good", "good. Happy to help!", "bad", "good film"],
    "ranks": [1, 0, 2, 1],
    "annotator": "ada",
    "strength": None,
    "source": "label-studio",
    "license": "CC0-1.0",
}

SCHEMA = RANKING
READS = {
    "train": Path("data/preferences/train.parquet"),
    "heldout": Path("data/preferences/heldout.parquet"),
    "evaluation": Path("data/curated/evaluation.parquet"),
}
JUDGED = ("train", "heldout")


def judgements(tables: dict[str, list[Row]]) -> list[Judgement]:
    named = [(name, row) for name in JUDGED for row in tables.get(name, ())]
    rows = [row for _, row in named]
    prompts = [columns.prompt(row["prompt"]) for row in rows]
    splits: dict[int, set[str]] = defaultdict(set)
    for (name, _), prompt in zip(named, prompts, strict=True):
        splits[prompt].add(name)
    frame = pd.DataFrame(
        {
            "id": [row["id"] for row in rows],
            "prompt": prompts,
            "splits_of_the_prompt": [len(splits[prompt]) for prompt in prompts],
            "annotator": [row["annotator"] for row in rows],
            "annotator_characters": [len(row["annotator"].strip()) for row in rows],
            "license": [columns.license(row["license"]) for row in rows],
            "roles": [columns.roles(row["prompt"]) for row in rows],
            "shortest_message": [columns.shortest(row["prompt"]) for row in rows],
            "answers": [len(row["answers"]) for row in rows],
            "distinct_answers": [len(set(row["answers"])) for row in rows],
            "ranked_answers": [content_id(sorted(row["answers"])) for row in rows],  # pairs of one prompt may be many
            "ranks": [len(row["ranks"]) for row in rows],
            "ranks_in_use": [" ".join(map(str, sorted(set(row["ranks"])))) for row in rows],
            "ranks_without_gaps": [" ".join(map(str, range(len(set(row["ranks"]))))) for row in rows],
        }
    )
    claims = {
        "ids are unique": gxe.ExpectColumnValuesToBeUnique(column="id"),
        "licences are known": gxe.ExpectColumnValuesToBeInSet(column="license", value_set=["known"]),
        "roles alternate and the user speaks last": gxe.ExpectColumnValuesToMatchRegex(
            column="roles", regex=columns.CONVERSATION
        ),
        "no message is empty": gxe.ExpectColumnValuesToBeBetween(column="shortest_message", min_value=1),
        "there are at least two answers": gxe.ExpectColumnValuesToBeBetween(column="answers", min_value=2),
        "the answers of a prompt differ": gxe.ExpectColumnPairValuesToBeEqual(
            column_A="distinct_answers", column_B="answers"
        ),
        "every answer has a rank": gxe.ExpectColumnPairValuesToBeEqual(column_A="ranks", column_B="answers"),
        "ranks start at 0 and have no gaps": gxe.ExpectColumnPairValuesToBeEqual(
            column_A="ranks_in_use", column_B="ranks_without_gaps"
        ),
        "the annotator has a name": gxe.ExpectColumnValuesToBeBetween(column="annotator_characters", min_value=1),
        "an annotator ranks the same answers to a prompt once": gxe.ExpectCompoundColumnsToBeUnique(
            column_list=["prompt", "annotator", "ranked_answers"]
        ),
        "a prompt stands in one split only": gxe.ExpectColumnValuesToBeBetween(
            column="splits_of_the_prompt", max_value=1
        ),
    }
    if evaluation := tables.get("evaluation"):
        frame["prompt_in_evaluation"] = columns.seen(
            frame["prompt"], columns.prompts(row["messages"] for row in evaluation)
        )
        claims["no prompt is an evaluation prompt"] = gxe.ExpectColumnValuesToBeInSet(
            column="prompt_in_evaluation", value_set=["new"]
        )
    as_tokens = ranking_tokens.judgements(tables) if tables.get("ranking_tokens") else []
    return [Judgement(frame, claims), *as_tokens]
