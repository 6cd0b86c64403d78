"""A table of annotators and the figures of their agreement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from tasks.lib.annotation.agreement import (
    Hits,
    alpha_interval,
    hits_with_others,
    krippendorff_alpha,
    rank_units,
    reliability,
    share_of_hits,
    verdicts,
)
from tasks.lib.data.rows import Row

# hits, and words that name the draw -> mean, low end and high end of the interval of the share of hits
Interval = Callable[..., tuple[float, float, float]]
LOW = 0.1  # an annotator is named whose agreement is surely this far below the mean of the others


def annotator_rows(ranked: Sequence[Row], interval: Interval) -> list[Row]:
    """A row per annotator who can be compared, for the table and the picture; `low`: see LOW.

    `ranked`: rankings with their prompt_key.
    """
    votes = verdicts(ranked)
    hits_of = hits_with_others(votes)
    rates = reliability(votes)
    rankings = Counter(row["annotator"] for row in ranked)
    rows = []
    for name, hits in hits_of.items():
        share, low, high = interval(hits, "agreement", name)
        row: Row = {
            "annotator": name,
            "agreement": share,
            "agreement_low": low,
            "agreement_high": high,
            "reliability": rates[name],
            "rankings": rankings[name],
            "pairs": len(hits),
        }
        others = [share_of_hits(theirs) for other, theirs in hits_of.items() if other != name]
        row["low"] = bool(others) and high < sum(others) / len(others) - LOW
        rows.append(row)
    return rows


def agreement_figures(ranked: Sequence[Row], annotators: Sequence[Row], interval: Interval, seed: int) -> Row:
    """Figures of agreement: per annotator, per source, over all; annotators far below the others are named."""
    figures: Row = {}
    for row in annotators:
        name = row["annotator"]
        figures[f"agreement_{name}"] = row["agreement"]
        figures[f"agreement_{name}_low"] = row["agreement_low"]
        figures[f"agreement_{name}_high"] = row["agreement_high"]
        figures[f"reliability_{name}"] = row["reliability"]
    figures |= _source_figures(ranked, interval)
    if annotators:  # several ranked the same answers
        figures["agreement"] = sum(row["agreement"] for row in annotators) / len(annotators)
        figures["low_agreement"] = ", ".join(row["annotator"] for row in annotators if row["low"])
    return figures | _alpha_figures(ranked, seed)


def _source_figures(ranked: Sequence[Row], interval: Interval) -> Row:
    """How often annotators agree with the others on the prompts of each source where they can be compared."""
    figures: Row = {}
    for source in sorted({row["source"] for row in ranked}):
        votes = verdicts(row for row in ranked if row["source"] == source)
        hits: Hits = []
        for of_annotator in hits_with_others(votes).values():
            hits += of_annotator
        if hits:
            key = f"agreement_source_{'_'.join(source.split())}"
            figures[key], figures[f"{key}_low"], figures[f"{key}_high"] = interval(hits, "source", source)
    return figures


def _alpha_figures(ranked: Sequence[Row], seed: int) -> Row:
    """Krippendorff's alpha with its interval; nothing where no answer was ranked twice."""
    units_by_prompt = rank_units(ranked)
    units: list[list[int]] = []
    for of_prompt in units_by_prompt.values():
        units += of_prompt
    alpha = krippendorff_alpha(units)
    if alpha is None:
        return {}
    figures: Row = {"krippendorff_alpha": alpha}
    span = alpha_interval(units_by_prompt, seed)
    if span:
        figures["krippendorff_alpha_low"], figures["krippendorff_alpha_high"] = span
    return figures
