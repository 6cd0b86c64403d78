"""preferences: exports of annotation tools become rankings in one format, with figures of agreement.

Reads   data/annotations/* (params preferences.annotations) and data/raw/benchmarks/* (preferences.benchmarks),
        every file in a format of docs/annotation.md
Writes  data/preferences/{train,heldout,dropped}.parquet, benchmarks/*.parquet there for the files of benchmarks,
        with preferences.attributes also ratings_{train,heldout}.parquet;
        reports/preferences.json, reports/plots/preferences.{csv,png}
Run     python -m tasks.preferences
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tasks.lib.annotation.agreement import Hits, with_prompt_keys
from tasks.lib.annotation.agreement_report import agreement_figures, annotator_rows
from tasks.lib.data.prompts import prompt_key
from tasks.lib.data.rows import LEDGER, RANKING, RATING, Row, write_parquet
from tasks.lib.evaluation.intervals import Interval, mean_interval
from tasks.lib.importers.attribute_ratings import has_ratings, ratings
from tasks.lib.importers.cleaning import cleaned
from tasks.lib.importers.formats import SUFFIXES, has_no_order, read_export
from tasks.lib.importers.rankings import RULES, Dropped, Ranking, is_heldout_prompt
from tasks.lib.plots import bars
from tasks.lib.settings.preferences import Params
from tasks.lib.stage import Problem, Stage, file_hash, main

PREFERENCES = Path("data/preferences")


def run(params: Params, stage: Stage) -> None:
    files = _export_files(params.annotations)
    unknown = params.formats.keys() - {file.name for file in files}
    if unknown:
        raise Problem(f"preferences.formats: {min(unknown)} is not a file in {params.annotations}")
    rated = [file for file in files if params.attributes and has_ratings(file, params.attributes)]

    rows, dropped, counts = cleaned(_imported(files, rated, params), params.license)
    for row in rows:
        row["annotator"] = params.annotators.get(row["annotator"], row["annotator"])
    _print_dropped(dropped)
    splits = _split(rows, params.heldout_share)
    for split, of_split in splits.items():
        if not of_split:
            raise Problem(
                f"{params.annotations}: no rankings for {split} (of {len(rows)}; {len(dropped)} dropped); "
                "annotate more prompts or change preferences.heldout_share"
            )
    _write_rankings(splits, dropped)
    rating_figures = _write_ratings(rated, params)
    _write_benchmarks(params, _prompt_keys(splits["train"]))

    ranked = with_prompt_keys(rows)
    annotators = annotator_rows(ranked, _interval(stage))
    agreement = agreement_figures(ranked, annotators, _interval(stage), stage.seed_of("alpha"))
    for row in annotators:
        if row["low"]:
            name = row["annotator"]
            print(f"preferences: {name} agrees far less with the others than they do with each other; check why")
    figures: Row = {"files": len(files)}
    figures |= _ranking_figures(ranked, splits, counts)
    figures |= _dropped_figures(dropped)
    stage.report(figures | agreement | rating_figures)
    _draw(annotators)


def _export_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise Problem(
            f"{folder} is not a folder; run annotate, or set preferences.annotations to where the exports are"
        )
    files = _tables(folder)
    if not files:
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
            print(f"preferences: {file} is ignored: it has the same bytes as {first[digest]}")
        first.setdefault(digest, file)
    return list(first.values())


def _imported(files: list[Path], rated: list[Path], params: Params) -> Iterator[Ranking | Dropped]:
    """The rankings of all files but those that only rate answers by attribute."""
    for file in files:
        if file in rated and has_no_order(file):
            continue
        yield from read_export(
            file,
            format=params.formats.get(file.name),
            buckets=params.buckets,
            untouched_seconds=params.untouched_seconds,
        )


def _split(rows: Iterable[Row], heldout_share: float) -> dict[str, list[Row]]:
    """Rows by split; all rows of a prompt are in one."""
    splits: dict[str, list[Row]] = {"train": [], "heldout": []}
    for row in rows:
        split = "heldout" if is_heldout_prompt(row["prompt"], heldout_share) else "train"
        splits[split].append(row)
    return splits


def _write_rankings(splits: dict[str, list[Row]], dropped: list[Dropped]) -> None:
    for split, of_split in splits.items():
        write_parquet(PREFERENCES / f"{split}.parquet", of_split, RANKING)
    ledger: list[Row] = []
    for item in dropped:
        ledger.append({"id": item.where, "rule": item.rule, "detail": item.detail})
    write_parquet(PREFERENCES / "dropped.parquet", ledger, LEDGER)


def _write_ratings(files: list[Path], params: Params) -> dict[str, int]:
    """Write ratings by attribute, split as the rankings are; the same rating twice counts once. Figures."""
    if not params.attributes:
        return {}
    rows: dict[str, Row] = {}
    rated_attributes = set()
    for file in files:
        for row in ratings(file, params.attributes, params.license):
            rows[row["id"]] = row
            rated_attributes.add(row["attribute"])
    for name in params.attributes:
        if name not in rated_attributes:
            raise Problem(f"preferences.attributes: no row of {params.annotations} rates an answer by {name}")
    for row in rows.values():
        row["annotator"] = params.annotators.get(row["annotator"], row["annotator"])
    splits = _split(rows.values(), params.heldout_share)
    for split, of_split in splits.items():
        write_parquet(PREFERENCES / f"ratings_{split}.parquet", of_split, RATING)
    return {"ratings_train": len(splits["train"]), "ratings_heldout": len(splits["heldout"])}


def _write_benchmarks(params: Params, trained_prompts: set[str]) -> None:
    """Write preferences from elsewhere, a file each, which judge reward models and train none."""
    folder = params.benchmarks
    if not folder.is_dir():
        raise Problem(f"preferences.benchmarks: {folder} is not a folder; name one, which may be empty")
    files: dict[str, Path] = {}
    for file in _tables(folder):
        name = file.name.split(".")[0]
        if name in files:
            raise Problem(f"{folder}: two files have the same name apart from the ending; rename one of them")
        files[name] = file
    for name, file in files.items():
        rows, dropped, _ = cleaned(read_export(file, buckets=params.buckets), params.license)
        if not rows:
            raise Problem(f"{file}: no two different answers are ordered; remove it from {folder}")
        write_parquet(PREFERENCES / f"benchmarks/{name}.parquet", rows, RANKING)
        _print_dropped(dropped)
        prompts = _prompt_keys(rows)
        seen = prompts & trained_prompts
        if seen:
            print(f"preferences: {file}: {len(seen)} of {len(prompts)} prompts are also in training")


def _prompt_keys(rows: list[Row]) -> set[str]:
    return {prompt_key(row["prompt"]) for row in rows}


def _print_dropped(dropped: list[Dropped]) -> None:
    """One line per rule with its first place: where to start looking."""
    counts = Counter[str]()
    firsts: dict[str, Dropped] = {}
    for item in dropped:
        counts[item.rule] += 1
        firsts.setdefault(item.rule, item)
    for rule, count in counts.most_common():
        first = firsts[rule]
        print(f"preferences: {count} dropped, {rule}: first {first.where} ({first.detail})")


def _ranking_figures(ranked: list[Row], splits: dict[str, list[Row]], counts: Counter[str]) -> Row:
    """How many rankings, prompts, annotators and pairs there are. `ranked`: rankings with their prompt_key."""
    prompts, annotators, pairs = set(), set(), 0
    for row in ranked:
        prompts.add(row["prompt_key"])
        annotators.add(row["annotator"])
        pairs += math.comb(len(row["ranks"]), 2)
    return {
        "rankings": len(ranked),
        "rankings_train": len(splits["train"]),
        "rankings_heldout": len(splits["heldout"]),
        "prompts": len(prompts),
        "annotators": len(annotators),
        "pairs": pairs,
        "tied_pairs_share": counts["tied_pairs"] / pairs,
        "changed_minds": counts["changed_minds"],
        "removed_equal_answers": counts["removed_equal_answers"],
        "removed_empty_answers": counts["removed_empty_answer"],
    }


def _dropped_figures(dropped: list[Dropped]) -> dict[str, int]:
    """How many annotations each of RULES dropped, and then each rule that only one importer has, if it dropped any."""
    counts = Counter(item.rule for item in dropped)
    figures = {}
    for rule in (*RULES, *sorted(counts.keys() - {*RULES})):
        figures[f"dropped_{rule}"] = counts[rule]
    return figures


def _interval(stage: Stage) -> Callable[..., Interval]:
    """Of hits, and words that name the draw: the share of hits with its bootstrap interval.

    Whole prompts are drawn, because the pairs of one prompt are not independent.
    """

    def interval(hits: Hits, *words: str) -> Interval:
        prompts, is_hit = zip(*hits, strict=True)
        return mean_interval(is_hit, seed=stage.seed_of(*words), groups=prompts, bounds=(0, 1))

    return interval


def _draw(annotators: list[Row]) -> None:
    """The agreement of every annotator with the others, and the level of chance."""
    bars(
        Path("reports/plots/preferences"),
        [{"": "with the others", "chance": 0.5, **row} for row in annotators],
        group="annotator",
        bar="",
        panels={"Agreement with the others' majority": "agreement"},
        levels={"chance": "chance"},
    )


if __name__ == "__main__":
    main(__file__, Params, run)
