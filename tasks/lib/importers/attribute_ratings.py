"""Ratings of single answers by attribute: helpfulness, correctness ... as numbers, or a thumb as 0 or 1.

A ranking says which answer is better, a rating how good one is: HelpSteer's rows {prompt, response, helpfulness, ...},
UltraFeedback's aspects, KTO's {prompt, completion, label}. A reward model can learn them beside the rankings
(SteerLM, arXiv 2310.05344), and thumbs train a policy without any pair (KTO, arXiv 2402.01306).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.lib.data.rows import content_id, read_table
from tasks.lib.importers.rankings import prompt_of
from tasks.lib.importers.ratings import ANSWERS, number, prompt_and_answer

Row = dict[str, Any]
BOOLEANS = {"true": 1.0, "false": 0.0}


def has_ratings(path: Path, names: Sequence[str]) -> bool:
    """Whether the first row of a file rates an answer by one of these attributes."""
    row = next(read_table(path))[1]
    return any(name in values for _, values in _rated(row) for name in names)


def ratings(path: Path, names: Sequence[str], license: str) -> Iterator[Row]:
    """A row of the schema RATING for every answer and attribute of a file; unrated ones are passed over."""
    for line, row in read_table(path):
        where = f"{path}:{line}"
        for answered, values in _rated(row):
            given = {name: values[name] for name in names if values.get(name) not in (None, "", "N/A")}
            if not given:
                continue
            prompt, answer = prompt_and_answer(where, answered)
            annotator, source = (str(row.get(key) or path.stem) for key in ("annotator", "source"))
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


def _rated(row: Row) -> Iterator[tuple[Row, Mapping[str, Any]]]:
    """(row with one answer, its values by attribute): the row itself, or each of UltraFeedback's completions."""
    if not isinstance(row.get("completions"), list):
        if {*ANSWERS, "messages", "conversations"} & row.keys():
            yield row, row
        return
    for completion in row["completions"]:
        if isinstance(completion, dict):
            aspects = completion.get("annotations")
            aspects = aspects if isinstance(aspects, dict) else {}
            stated = {k: a.get("Rating") for k, a in aspects.items() if isinstance(a, dict)}
            yield (
                {"prompt": prompt_of("", row), "answer": completion.get("response")},
                {**completion, **stated},
            )
