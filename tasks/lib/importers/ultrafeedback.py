"""UltraFeedback (arXiv 2310.01377): a model's scores rank all completions of an instruction.

    {"instruction": "Q", "completions": [
        {"response": "Yes.", "annotations": {"helpfulness": {"Rating": "4"}, "honesty": {"Rating": "N/A"}}},
        {"response": "No.", "overall_score": 6.0}]}

Equal scores are a tie. A completion without a score is dropped (`unranked_answer`).
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from tasks.lib.data.rows import Row
from tasks.lib.importers.rankings import Dropped, Export, Ranking, prompt_of
from tasks.lib.importers.ratings import number, ranks_of
from tasks.lib.stage import Problem

# The published data set holds 10s in `overall_score` that were meant as 1s: it is asked last.
SCORES = ("fine-grained_score", "score", "overall_score")


def is_instruction(row: Row) -> bool:
    return isinstance(row.get("completions"), list) and bool({"instruction", "prompt"} & row.keys())


def read(export: Export) -> Iterator[Ranking | Dropped]:
    """A ranking of the scored completions of every instruction."""
    for where, row in export.rows:
        answers, values = [], []
        for place, completion in enumerate(row["completions"]):
            answer = completion.get("response") if isinstance(completion, dict) else None
            if not isinstance(answer, str):
                raise Problem(f"{where}:completions: expected a response as text in completion {place}")
            value = _score(f"{where}:completions", completion)
            if value is None:
                yield Dropped(f"{where}:completion {place}", "unranked_answer", "a completion without a score")
            else:
                answers.append(answer)
                values.append(value)
        annotator, source = export.annotator_of(row), export.source_of(row)
        yield Ranking(where, prompt_of(where, row), answers, ranks_of(values), annotator, source)


def _score(where: str, completion: Row) -> float | None:
    """The mean of the aspects (helpfulness, honesty, ...), or else the one score that there is."""
    aspects = completion.get("annotations")
    rated = []
    for aspect in aspects.values() if isinstance(aspects, dict) else ():
        rating = aspect.get("Rating")
        if rating not in (None, "N/A"):
            rated.append(number(where, rating))
    if rated:
        return fmean(rated)
    for name in SCORES:
        if completion.get(name) is not None:
            return number(f"{where}:{name}", completion[name])
    return None
