"""Ratings of single answers by attribute: helpfulness, correctness ... as numbers, or a thumb as 0 or 1.

A ranking says which answer is better, a rating how good one is. A reward model can learn ratings in addition to
rankings (SteerLM, arXiv 2310.05344), and thumbs train a policy without any pair (KTO, arXiv 2402.01306). A row holds
an attribute in a field of its name, as HelpSteer's and KTO's do, or completions with aspects, as UltraFeedback's do:

    {"prompt": "Q", "response": "Yes.", "helpfulness": 4, "correctness": "3"}
    {"prompt": "Q", "completion": "Yes.", "label": true}
    {"instruction": "Q", "completions": [{"response": "Yes.", "annotations": {"honesty": {"Rating": "5"}}}]}

Answers that an attribute does not rate (null, empty, N/A) are passed over; equal ratings say nothing special.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.lib.data.rows import Row, content_id, read_table
from tasks.lib.importers.rankings import prompt_of
from tasks.lib.importers.ratings import ANSWERS, number, prompt_and_answer

BOOLEANS = {"true": 1.0, "false": 0.0}


def has_ratings(path: Path, names: Sequence[str]) -> bool:
    """Whether the first row of a file rates an answer by one of these attributes."""
    _, row = next(read_table(path))
    return any(not values.keys().isdisjoint(names) for _, values in _rated_answers(row))


def ratings(path: Path, names: Sequence[str], license: str) -> Iterator[Row]:
    """A row of the schema RATING for every answer and attribute of a file; unrated ones are passed over."""
    for line, row in read_table(path):
        where = f"{path}:{line}"
        annotator = str(row.get("annotator") or path.stem)
        source = str(row.get("source") or path.stem)
        for answered, values in _rated_answers(row):
            given = {name: values[name] for name in names if values.get(name) not in (None, "", "N/A")}
            if not given:
                continue
            prompt, answer = prompt_and_answer(where, answered)
            for name, value in given.items():
                value = BOOLEANS.get(str(value).lower(), value)
                yield {
                    "id": content_id(prompt, answer, name, annotator, source),
                    "prompt": prompt,
                    "answer": answer,
                    "attribute": name,
                    "value": number(f"{where}:{name}", value),
                    "annotator": annotator,
                    "source": source,
                    "license": row.get("license") or license,
                }


def _rated_answers(row: Row) -> Iterator[tuple[Row, Mapping[str, Any]]]:
    """(row with one answer, its values by attribute): the row itself, or each of UltraFeedback's completions."""
    if not isinstance(row.get("completions"), list):
        if {*ANSWERS, "messages", "conversations"} & row.keys():
            yield row, row
        return
    for completion in row["completions"]:
        if not isinstance(completion, dict):
            continue
        values = dict(completion)
        aspects = completion.get("annotations")
        for name, aspect in aspects.items() if isinstance(aspects, dict) else ():
            if isinstance(aspect, dict):
                values[name] = aspect.get("Rating")
        yield {"prompt": prompt_of("", row), "answer": completion.get("response")}, values
