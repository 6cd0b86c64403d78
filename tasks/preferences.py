"""preferences: exports of annotation tools become rankings in one format, with figures of agreement.

Reads   data/annotations/* (params preferences.annotations) and data/raw/benchmarks/* (preferences.benchmarks),
        every file in a format of docs/annotation.md
Writes  data/preferences/{train,heldout,dropped}.parquet, benchmarks/*.parquet there for the files of benchmarks,
        with preferences.attributes also ratings_{train,heldout}.parquet;
        reports/preferences.json, reports/plots/preferences.{csv,png}
Run     python -m tasks.preferences
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

from tasks.lib.annotation.agreement import with_prompt_keys
from tasks.lib.annotation.agreement_report import agreement_figures, annotator_rows
from tasks.lib.data.prompts import prompt_key
from tasks.lib.data.rows import LEDGER, RANKING, RATING, write_parquet
from tasks.lib.evaluation.intervals import Interval, mean_interval
from tasks.lib.importers.attribute_ratings import has_ratings, ratings
from tasks.lib.importers.formats import SUFFIXES, has_no_order, read_export
from tasks.lib.importers.rankings import Dropped, cleaned, is_heldout
from tasks.lib.plots import bars
from tasks.lib.settings.preferences import Params
from tasks.lib.stage import Problem, Stage, file_hash, main

RULES = (
    "cancelled",
    "abstained",
    "untouched",
    "annotator_twice",
    "repeated",
    "equal_answers",
    "empty_answer",
    "too_few_answers",
    "prompts_differ",
    "scores_differ",
    "order_flip",
    "no_verdict",
    "unranked_answer",
    "no_parent",
    "unannotated",
    "no_answer",
    "cycle",
)


def run(params: Params, stage: Stage) -> None:
    files = _export_files(params.annotations)
    if unknown := params.formats.keys() - {file.name for file in files}:
        raise Problem(f"preferences.formats: {min(unknown)} is no file of {params.annotations}")
    rated = [file for file in files if params.attributes and has_ratings(file, params.attributes)]
    found = chain.from_iterable(
        read_export(
            file,
            format=params.formats.get(file.name),
            buckets=params.buckets,
            untouched_seconds=params.untouched_seconds,
        )
        for file in files
        if not (file in rated and has_no_order(file))
    )
    rows, dropped, counts = cleaned(found, params.license)
    for row in rows:
        row["annotator"] = params.annotators.get(row["annotator"], row["annotator"])
    _tell(dropped)
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "heldout": []}
    for row in rows:
        splits["heldout" if is_heldout(row["prompt"], params.heldout_share) else "train"].append(row)
    for split, kept in splits.items():
        if not kept:
            raise Problem(
                f"{params.annotations}: no rankings for {split} (of {len(rows)}; {len(dropped)} dropped); "
                "annotate more prompts or change preferences.heldout_share"
            )
    for split, kept in splits.items():
        write_parquet(Path("data/preferences") / f"{split}.parquet", kept, RANKING)
    ledger = [{"id": item.where, "rule": item.rule, "detail": item.detail} for item in dropped]
    write_parquet(Path("data/preferences/dropped.parquet"), ledger, LEDGER)

    rating_figures = _write_ratings(rated, params)
    _write_benchmarks(params, {prompt_key(row["prompt"]) for row in splits["train"]})

    ranked = with_prompt_keys(rows)
    annotators = annotator_rows(ranked, _interval(stage))
    figures = agreement_figures(ranked, annotators, _interval(stage), stage.seed_of("alpha"))
    for name in filter(None, figures.get("low_agreement", "").split(", ")):
        print(f"preferences: {name} agrees with the others much less than they with each other; look at them")
    stage.report({**_figures(ranked, splits, dropped, counts, files), **figures, **rating_figures})
    bars(
        Path("reports/plots/preferences"),
        [{"": "with the others", "chance": 0.5, **row} for row in annotators],
        group="annotator",
        bar="",
        panels={"Agreement with the others' majority": "agreement"},
        levels={"chance": "chance"},
    )


def _export_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise Problem(
            f"{folder} is not a folder; run annotate, or set preferences.annotations to where the exports are"
        )
    if not (files := _tables(folder)):
        raise Problem(f"{folder}: holds no export ({', '.join(SUFFIXES)}); put the annotation exports there")
    return _without_copies(files)


def _tables(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and not file.name.startswith("."))


def _without_copies(files: list[Path]) -> list[Path]:
    """A file put there twice counts once: its rankings would seem to come from two sources."""
    first: dict[str, Path] = {}
    for file in files:
        digest = file_hash(file)
        if digest in first:
            print(f"preferences: {file} is left out: the same bytes as {first[digest]}")
        first.setdefault(digest, file)
    return list(first.values())


def _write_ratings(files: list[Path], params: Params) -> dict[str, int]:
    """Ratings by attribute, split as the rankings are; the same rating twice counts once. Figures."""
    if not params.attributes:
        return {}
    rows: dict[str, dict[str, Any]] = {}
    for file in files:
        rows |= {row["id"]: row for row in ratings(file, params.attributes, params.license)}
    for name in params.attributes:
        if not any(row["attribute"] == name for row in rows.values()):
            raise Problem(f"preferences.attributes: no row of {params.annotations} rates an answer by {name}")
    splits: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for row in rows.values():
        row["annotator"] = params.annotators.get(row["annotator"], row["annotator"])
        splits[is_heldout(row["prompt"], params.heldout_share)].append(row)
    for heldout, split in ((False, "train"), (True, "heldout")):
        write_parquet(Path(f"data/preferences/ratings_{split}.parquet"), splits[heldout], RATING)
    return {"ratings_train": len(splits[False]), "ratings_heldout": len(splits[True])}


def _write_benchmarks(params: Params, trained: set[str]) -> None:
    """Preferences from elsewhere, a file each, which judge reward models and train none."""
    folder = params.benchmarks
    if not folder.is_dir():
        raise Problem(f"preferences.benchmarks: {folder} is not a folder; name one, which may hold no file")
    files = {file.name.split(".")[0]: file for file in _tables(folder)}
    if len(files) < len(_tables(folder)):
        raise Problem(f"{folder}: two files have the same name but for its ending; rename one of them")
    for name, file in files.items():
        rows, dropped, _ = cleaned(read_export(file, buckets=params.buckets), params.license)
        if not rows:
            raise Problem(f"{file}: no pair of different answers is ordered; take it out of {folder}")
        write_parquet(Path(f"data/preferences/benchmarks/{name}.parquet"), rows, RANKING)
        _tell(dropped)
        prompts = {prompt_key(row["prompt"]) for row in rows}
        if seen := prompts & trained:
            print(f"preferences: {file}: {len(seen)} of {len(prompts)} prompts are trained on, too")


def _tell(dropped: list[Dropped]) -> None:
    """One line per rule with its first place: where to start looking."""
    for rule, count in Counter(item.rule for item in dropped).most_common():
        first = next(item for item in dropped if item.rule == rule)
        print(f"preferences: {count} dropped, {rule}: first {first.where} ({first.detail})")


def _figures(
    ranked: list[dict[str, Any]],
    splits: dict[str, list[dict[str, Any]]],
    dropped: list[Dropped],
    counts: Counter[str],
    files: list[Path],
) -> dict[str, Any]:
    rules = Counter(item.rule for item in dropped)
    pairs = sum(len(row["ranks"]) * (len(row["ranks"]) - 1) // 2 for row in ranked)
    return {
        "files": len(files),
        "rankings": len(ranked),
        "rankings_train": len(splits["train"]),
        "rankings_heldout": len(splits["heldout"]),
        "prompts": len({row["prompt_key"] for row in ranked}),
        "annotators": len({row["annotator"] for row in ranked}),
        "pairs": pairs,
        "tied_pairs_share": counts["tied_pairs"] / pairs,
        "changed_minds": counts["changed_minds"],
        "removed_equal_answers": counts["removed_equal_answers"],
        "removed_empty_answers": counts["removed_empty_answer"],
        **{f"dropped_{rule}": rules[rule] for rule in RULES},
    }


def _interval(stage: Stage) -> Callable[..., Interval]:
    """Bootstrap over whole prompts, because the pairs of one prompt are not independent."""
    return lambda hits, *words: mean_interval(
        [hit for _, hit in hits],
        seed=stage.seed_of(*words),
        groups=[prompt for prompt, _ in hits],
        bounds=(0, 1),
    )


if __name__ == "__main__":
    main(__file__, Params, run)
