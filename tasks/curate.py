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
from pathlib import Path

from tasks.lib.data.rows import INSTRUCTION, LEDGER, Row, read_parquet, write_parquet
from tasks.lib.data.rules import RULES, Findings
from tasks.lib.data.splits import EVALUATION, SPLITS
from tasks.lib.plots import bars
from tasks.lib.settings.curate import Params
from tasks.lib.stage import Problem, Stage, main

INSTRUCTIONS = Path("data/instructions/rows.parquet")
OUT = Path("data/curated")
FILES = {
    "evaluation": EVALUATION,
    "validation": ("validation",),
    "policy": ("policy",),
    "preference": ("preference",),
    "train": ("train",),
}


def run(params: Params, stage: Stage) -> None:
    # 1. Read the rows, in the order in which a duplicate is kept.
    rows = read_parquet(INSTRUCTIONS, INSTRUCTION.names)
    for split in sorted(splits_of(rows)):
        if split not in SPLITS:
            raise Problem(f"{INSTRUCTIONS}: {split} is not a split; known: {', '.join(SPLITS)}")
    rows.sort(key=lambda row: (SPLITS.index(row["split"]), row["id"]))
    before = splits_of(rows)

    # 2. Apply rule after rule.
    ledger: list[Row] = []
    dropped: dict[str, int] = {}  # rule -> rows
    leaked: set[str] = set()
    for number, (name, rule) in enumerate(RULES.items(), 1):
        findings = rule(rows, params)
        ledger += entries_of(name, findings, rows)
        rows = applied(findings, rows)
        dropped[name] = len(findings.drop)
        leaked |= findings.leaked
        stage.progress(number, len(RULES), rows=len(rows))
    after = splits_of(rows)
    for split in before:
        if split not in after:
            raise Problem(f"curate: no row of the split {split} is left; see the rules and their parameters")

    # 3. Write, and say what was dropped and what is left.
    for file, splits in FILES.items():
        write_parquet(OUT / f"{file}.parquet", [row for row in rows if row["split"] in splits], INSTRUCTION)
    write_parquet(OUT / "ledger.parquet", ledger, LEDGER)
    print_table(before.total(), dropped)
    draw(rows)
    figures: dict[str, float | int] = {"rows_in": before.total(), "rows_out": len(rows)}
    for name, count in dropped.items():
        figures[f"dropped.{name.replace(' ', '_')}"] = count
    figures["redacted.personal_data"] = sum(entry["rule"] == "personal data redacted" for entry in ledger)
    figures |= about_contamination(rows, dropped, leaked)
    for split, count in before.items():
        figures[f"in.{split}"] = count
    for split, count in after.items():
        figures[f"out.{split}"] = count
    stage.report(figures | about_rows(rows))


def entries_of(rule: str, findings: Findings, rows: list[Row]) -> list[Row]:
    """The ledger's entries of what a rule found, redacted rows before dropped ones."""
    entries = []
    for place, (_, why) in findings.redact.items():
        entries.append({"id": rows[place]["id"], "rule": f"{rule} redacted", "detail": why})
    for place, why in sorted(findings.drop.items()):
        entries.append({"id": rows[place]["id"], "rule": rule, "detail": why})
    return entries


def applied(findings: Findings, rows: list[Row]) -> list[Row]:
    """The rows that are left, as they are left."""
    kept = []
    for place, row in enumerate(rows):
        if place in findings.redact:
            row, _ = findings.redact[place]
        if place not in findings.drop:
            kept.append(row)
    return kept


def print_table(rows: int, dropped: dict[str, int]) -> None:
    """How many rows came to each rule, were dropped by it, and were left."""
    for rule, count in {"all rows": 0, **dropped}.items():
        print(f"{rule:<22}{rows:>8} in {count:>8} dropped {rows - count:>8} out")
        rows -= count


def about_contamination(rows: list[Row], dropped: dict[str, int], leaked: set[str]) -> dict[str, float | int]:
    evaluated = {row["row"] for row in rows if row["split"] in EVALUATION}
    return {
        "contamination.training_rows": dropped["contamination"],
        "contamination.evaluation_rows": len(leaked),
        "contamination.evaluation_share": len(leaked) / max(len(evaluated), 1),
    }


def about_rows(rows: list[Row]) -> dict[str, float | int]:
    """How many rows are left of each source, cluster and licence; the balance of classes."""
    figures: dict[str, float | int] = {}
    for key in ("source", "cluster", "license"):
        for name, count in sorted(Counter(row[key] for row in rows).items()):
            figures[f"{key}.{name}"] = count
    for task, share in largest_classes(rows).items():
        figures[f"largest_class.{task}"] = share
    return figures


def draw(rows: list[Row]) -> None:
    """How many words the prompts and answers have that are left, by split."""
    counts: Counter[tuple[str, str, int]] = Counter()  # of (text, split, binary digits of the number of words)
    for row in rows:
        prompt = sum(len(message["content"].split()) for message in row["messages"])
        counts["prompts", row["split"], prompt.bit_length()] += 1
        counts["answers", row["split"], len(row["answer"].split()).bit_length()] += 1
    longest = max(digits for _, _, digits in counts)
    table = []
    for digits in range(longest + 1):
        for split, of_split in splits_of(rows).items():
            words = f"{2**digits // 2}+"
            prompts, answers = counts["prompts", split, digits], counts["answers", split, digits]
            table.append({"words": words, "split": split, "prompts": prompts / of_split, "answers": answers / of_split})
    titles = {"Words of the prompts, share of rows": "prompts", "Words of the answers": "answers"}
    bars(Path("reports/plots/curate"), table, "words", "split", titles)


def splits_of(rows: list[Row]) -> Counter[str]:
    """How many rows each split has, in the order in which they first come."""
    return Counter(row["split"] for row in rows)


def largest_classes(rows: list[Row]) -> dict[str, float]:
    """The share of the most frequent choice among the training rows of a task, by its place among the choices."""
    tasks: dict[str, Counter[int]] = defaultdict(Counter)
    for row in rows:
        if row["choices"] is not None and row["split"] == "train":
            tasks[row["task"]][row["choices"].index(row["label"])] += 1
    return {task: max(places.values()) / places.total() for task, places in sorted(tasks.items())}


if __name__ == "__main__":
    main(__file__, Params, run)
