"""A table of annotators and the figures of their agreement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tasks.lib.annotation.agreement import (
    alpha_interval,
    hits_with_others,
    krippendorff_alpha,
    rank_units,
    reliability,
    verdicts,
)

Row = dict[str, Any]
# (prompt id, hit) of pairs, and words that name the draw -> an interval (mean, low, high)
Mean = Callable[..., Any]
LOW = 0.1  # an annotator is named whose agreement is surely this far below the mean of the others


def annotator_rows(ranked: Sequence[Row], interval: Mean) -> list[Row]:
    """A row per annotator who can be compared, for the table and the picture; `low`: see LOW."""
    votes = verdicts(ranked)
    hits, rates = hits_with_others(votes), reliability(votes)
    rankings = Counter(row["annotator"] for row in ranked)
    rows = []
    for name, of_name in hits.items():
        others = [sum(h for _, h in theirs) / len(theirs) for who, theirs in hits.items() if who != name]
        share = interval(of_name, "agreement", name)
        rows.append(
            {
                "annotator": name,
                "agreement": share.mean,
                "agreement_low": share.low,
                "agreement_high": share.high,
                "reliability": rates[name],
                "rankings": rankings[name],
                "pairs": len(of_name),
                "low": bool(others) and share.high < sum(others) / len(others) - LOW,
            }
        )
    return rows


def agreement_figures(ranked: Sequence[Row], annotators: Sequence[Row], interval: Mean, seed: int) -> Row:
    """Figures of agreement: per annotator, per source, over all; annotators far below the others are named."""
    figures: dict[str, Any] = {}
    for row in annotators:
        name = row["annotator"]
        figures |= {f"agreement_{name}{end}": row[f"agreement{end}"] for end in ("", "_low", "_high")}
        figures[f"reliability_{name}"] = row["reliability"]
    for source in sorted({row["source"] for row in ranked}):
        votes = verdicts(row for row in ranked if row["source"] == source)
        if hits := [hit for of_name in hits_with_others(votes).values() for hit in of_name]:
            share, name = interval(hits, "source", source), "_".join(source.split())
            figures |= {f"agreement_source_{name}": share.mean}
            figures |= {
                f"agreement_source_{name}_low": share.low,
                f"agreement_source_{name}_high": share.high,
            }
    if annotators:  # several ranked the same answers
        figures["agreement"] = sum(row["agreement"] for row in annotators) / len(annotators)
        figures["low_agreement"] = ", ".join(row["annotator"] for row in annotators if row["low"])
    units = rank_units(ranked)
    alpha = krippendorff_alpha(unit for of_prompt in units.values() for unit in of_prompt)
    if alpha is not None:
        figures["krippendorff_alpha"] = alpha
        if span := alpha_interval(units, seed):
            figures["krippendorff_alpha_low"], figures["krippendorff_alpha_high"] = span
    return figures
