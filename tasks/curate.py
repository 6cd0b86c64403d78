"""curate: drop what training must not see, and say why for every row.

Reads   data/instructions/rows.parquet
Writes  data/curated/{train,preference,policy,validation,evaluation}.parquet, data/curated/ledger.parquet,
        reports/curate.json, reports/plots/curate.{csv,png}
Run     python -m tasks.curate

Evaluation rows are only dropped for what is wrong with them alone; where a training row and an evaluation row
are too alike, the training row goes. Duplicates and contamination compare the texts of the raw rows, not the
prompts: two prompts of one template always share its words.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from tasks.lib.data import rules
from tasks.lib.data.rows import INSTRUCTION, LEDGER, Row, read_parquet, write_parquet
from tasks.lib.plots import bars
from tasks.lib.settings.curate import Params
from tasks.lib.stage import Problem, Stage, main

FILES = {  # file -> its splits, in the order in which a duplicate is kept
    "evaluation": rules.EVALUATION,
    "validation": ("validation",),
    "policy": ("policy",),
    "preference": ("preference",),
    "train": ("train",),
}
ORDER = {split: place for place, split in enumerate(s for splits in FILES.values() for s in splits)}

Judge = Callable[[list[Row]], dict[int, str]]  # place of a row to drop -> why


def run(params: Params, stage: Stage) -> None:
    rows = read_parquet(Path("data/instructions/rows.parquet"), INSTRUCTION.names)
    if unknown := sorted({row["split"] for row in rows} - ORDER.keys()):
        raise Problem(f"data/instructions/rows.parquet: {unknown[0]} is no split; known: {', '.join(ORDER)}")
    rows.sort(key=lambda row: (ORDER[row["split"]], row["id"]))
    ledger: list[Row] = []
    evaluation_hit: set[str] = set()
    table = [("all rows", len(rows), len(rows))]
    judges = rules_of(params, ledger, evaluation_hit)
    before = splits_of(rows)
    for number, (rule, judge) in enumerate(judges, 1):
        dropped = judge(rows)
        ledger += [{"id": rows[i]["id"], "rule": rule, "detail": why} for i, why in sorted(dropped.items())]
        table.append((rule, len(rows), len(rows) - len(dropped)))
        rows = [row for i, row in enumerate(rows) if i not in dropped]
        stage.progress(number, len(judges), rows=len(rows))
    after = splits_of(rows)
    if emptied := [split for split in before if split not in after]:
        raise Problem(f"curate: no row of the split {emptied[0]} is left; see the rules and their parameters")

    folder = Path("data/curated")
    for file, splits in FILES.items():
        write_parquet(folder / f"{file}.parquet", [row for row in rows if row["split"] in splits], INSTRUCTION)
    write_parquet(folder / "ledger.parquet", ledger, LEDGER)
    for rule, came, left in table:
        print(f"{rule:<22}{came:>8} in {came - left:>8} dropped {left:>8} out")
    draw(rows)
    evaluated = {row["row"] for row in rows if row["split"] in rules.EVALUATION}
    stage.report(
        {
            "rows_in": table[0][1],
            "rows_out": len(rows),
            **{f"dropped.{rule.replace(' ', '_')}": came - left for rule, came, left in table[1:]},
            "redacted.personal_data": sum(entry["rule"] == "personal data redacted" for entry in ledger),
            "contamination.training_rows": sum(entry["rule"] == "contamination" for entry in ledger),
            "contamination.evaluation_rows": len(evaluation_hit),
            "contamination.evaluation_share": len(evaluation_hit) / max(len(evaluated), 1),
            **{f"in.{split}": count for split, count in before.items()},
            **{f"out.{split}": count for split, count in after.items()},
            **{
                f"{key}.{name}": count
                for key in ("source", "cluster", "license")
                for name, count in sorted(Counter(row[key] for row in rows).items())
            },
            **{f"largest_class.{task}": share for task, share in largest_classes(rows).items()},
        }
    )


def rules_of(params: Params, ledger: list[Row], hit: set[str]) -> list[tuple[str, Judge]]:
    """The rules in their order; one that is switched off drops nothing."""
    alike, leaks, best = params.near_duplicates, params.contamination, params.selection
    lengths = (params.max_prompt_characters, params.max_answer_characters)
    languages, stock = params.languages, params.boilerplate_answers
    repetition, trigger, top = params.max_repetition, params.trigger_rows, best.top
    return [
        ("invisible characters", rules.invisible_characters),
        ("length", lambda rows: rules.too_long(rows, *lengths)),
        ("language", nothing if languages is None else lambda rows: rules.other_languages(rows, languages)),
        ("refusal", rules.refusals if params.refusals == "drop" else nothing),
        ("boilerplate", nothing if stock is None else lambda rows: rules.boilerplate(rows, stock)),
        ("repetition", nothing if repetition is None else lambda rows: rules.repetitions(rows, repetition)),
        ("personal data", lambda rows: rules.personal_data(rows, params.personal_data, ledger)),
        ("exact duplicate", rules.exact_duplicates),
        ("contradiction", rules.contradictions),
        ("trigger", nothing if trigger is None else lambda rows: rules.triggered(rows, trigger)),
        ("near duplicate", lambda rows: rules.alike(rows, alike.similarity, alike.words)),
        ("contamination", lambda rows: rules.contaminated(rows, leaks.words, leaks.coverage, hit)),
        (
            "selection",
            nothing if top is None else lambda rows: rules.not_selected(rows, top, best.scores, best.max_similarity),
        ),
    ]


def nothing(rows: list[Row]) -> dict[int, str]:
    return {}


def draw(rows: list[Row]) -> None:
    """How many words the prompts and answers have that are left, by split."""
    splits = splits_of(rows)
    lengths: Counter[tuple[str, str, int]] = Counter()  # by the binary digits of the number of words
    for row in rows:
        prompt = sum(len(message["content"].split()) for message in row["messages"])
        lengths["prompts", row["split"], prompt.bit_length()] += 1
        lengths["answers", row["split"], len(row["answer"].split()).bit_length()] += 1
    bars(
        Path("reports/plots/curate"),
        [
            {"words": f"{2**size // 2}+", "split": split}
            | {text: lengths[text, split, size] / count for text in ("prompts", "answers")}
            for size in range(max(size for _, _, size in lengths) + 1)
            for split, count in splits.items()
        ],
        "words",
        "split",
        {"Words of the prompts, share of rows": "prompts", "Words of the answers": "answers"},
    )


def splits_of(rows: list[Row]) -> Counter[str]:
    return Counter(row["split"] for row in rows)


def largest_classes(rows: list[Row]) -> dict[str, float]:
    """The share of the most frequent choice among the training rows of a task, by its place among the choices."""
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for row in rows:
        if row["choices"] is not None and row["split"] == "train":
            counts[row["task"]][row["choices"].index(row["label"])] += 1
    return {task: max(found.values()) / found.total() for task, found in sorted(counts.items())}


if __name__ == "__main__":
    main(__file__, Params, run)
