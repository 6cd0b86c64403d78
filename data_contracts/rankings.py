"""Rankings: how one annotator ranked the answers to one prompt. Ranks start at 0, equal ranks are a tie.

In the pipeline they are judged as tokens too (ranking_tokens), in the same process.
"""

from __future__ import annotations

from pathlib import Path

import great_expectations.expectations as gxe
import pandas as pd

from data_contracts import columns, ranking_tokens
from data_contracts.columns import Claims
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


def claims_of(tables: dict[str, list[Row]]) -> list[Claims]:
    train, heldout, evaluation = tables.get("train", []), tables.get("heldout", []), tables.get("evaluation")
    frame, expectations = frame_of(train, heldout), claims_about_rows()
    if evaluation:
        prompts = set(columns.prompts(evaluation, "messages"))
        frame["prompt_in_evaluation"] = columns.seen(frame["prompt"], prompts)
        expectations["no prompt is an evaluation prompt"] = gxe.ExpectColumnValuesToBeInSet(
            column="prompt_in_evaluation", value_set=["new"]
        )
    claims = [Claims(frame, expectations)]
    if tables.get("ranking_tokens"):
        claims += ranking_tokens.claims_of(tables)
    return claims


def frame_of(train: list[Row], heldout: list[Row]) -> pd.DataFrame:
    """One line per ranking: what claims are made about."""
    rows = train + heldout
    ranks_in_use, ranks_without_gaps = [], []
    for row in rows:
        in_use = sorted(set(row["ranks"]))
        ranks_in_use.append(" ".join(map(str, in_use)))
        ranks_without_gaps.append(" ".join(map(str, range(len(in_use)))))
    of_train, of_heldout = columns.prompts(train, "prompt"), columns.prompts(heldout, "prompt")
    prompts, in_both = of_train + of_heldout, set(of_train) & set(of_heldout)
    return pd.DataFrame(
        {
            "id": columns.values(rows, "id"),
            "prompt": prompts,
            "splits_of_the_prompt": [2 if prompt in in_both else 1 for prompt in prompts],
            "annotator": columns.values(rows, "annotator"),
            "annotator_characters": columns.characters(rows, "annotator"),
            "license": columns.licenses(rows),
            "roles": columns.roles(rows, "prompt"),
            "shortest_message": columns.shortest(rows, "prompt"),
            "answers": columns.sizes(rows, "answers"),
            "distinct_answers": columns.different(rows, "answers"),
            "ranked_answers": [content_id(sorted(row["answers"])) for row in rows],  # pairs of one prompt may be many
            "ranks": columns.sizes(rows, "ranks"),
            "ranks_in_use": ranks_in_use,
            "ranks_without_gaps": ranks_without_gaps,
        }
    )


def claims_about_rows() -> dict[str, gxe.Expectation]:
    return {
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
