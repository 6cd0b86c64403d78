"""What a run says at its end: a table of stages, where the release and the report lie, what to type next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.lineage import COLOURS, figures

# stage -> (label, key of the figure before | None, key after); both keys are read from reports/<stage>.json
HEADLINES: dict[str, tuple[str, str | None, str]] = {
    "base": ("perplexity", "perplexity_before", "perplexity"),
    "render": ("rows from raw rows", "raw_rows", "rows"),
    "check": ("rows that hold", None, "rows"),
    "curate": ("rows", "rows_in", "rows_out"),
    "sft": ("validation loss", "validation_loss_before", "validation_loss"),
    "classify": ("held-out accuracy, majority -> model", "majority_accuracy", "accuracy"),
    "sample": ("prompts with answers to rank", "prompts", "prompts_kept"),
    "annotate": ("rankings", None, "annotations"),
    "preferences": ("agreement of annotators", None, "agreement"),
    "reward": ("held-out pairs ordered right", None, "pair_accuracy"),
    "dpo": ("held-out pairs preferred right", None, "heldout_accuracy"),
    "ppo": ("judge", "judge_before", "judge_after"),
    "evaluate": ("exact match, base -> sft", "base.rows.exact_match", "sft.rows.exact_match"),
    "choose": ("win rate against sft", None, "chosen.rows.win_rate"),
    "distill": ("exact match, teacher -> student", "teacher.exact_match", "student.exact_match"),
    "quantize": ("bytes, fp32 -> q8_0", "safetensors.bytes", "gguf-q8_0.bytes"),
    "release": ("exact match, fp32 -> nf4", "safetensors.exact_match", "nf4.exact_match"),
}

STYLES = {
    "Completed": "green",
    "Cached": "cyan",
    "Failed": "bold red",
    "Skipped": "dim",
    "Cancelled": "yellow",
}
assert STYLES.keys() == COLOURS.keys()


def rows(run: Mapping[str, Any], reports: Path = Path("reports")) -> Iterator[tuple[str, str, str, str]]:
    """Stage, state and seconds, the figure that matters, the path of its report; from .anneal/run.json."""
    for name, entry in run.get("stages", {}).items():
        state, seconds = entry["state"], entry["seconds"]
        report = reports.joinpath(*name.split("@")).with_suffix(".json")
        done = state in ("Completed", "Cached")
        yield (
            name,
            f"{state} {seconds:.1f} s" if state == "Completed" else state,
            headline(name, figures(name, reports)) if done else entry["reason"].split("\n")[0],
            str(report) if done and report.is_file() else "",
        )


def headline(name: str, report: Mapping[str, Any]) -> str:
    """`exact match 0 -> 0.88`, or the first entry of a report without the figure that HEADLINES names."""
    label, before, after = HEADLINES.get(name, HEADLINES.get(name.split("@")[0], ("", None, "")))
    if after in report:
        old = f"{_shown(report[before])} -> " if before is not None and before in report else ""
        return f"{label} {old}{_shown(report[after])}"
    first = next(((key, value) for key, value in report.items() if not isinstance(value, bool)), None)
    return f"{first[0].replace('_', ' ')} {_shown(first[1])}" if first else ""


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def show(run: Mapping[str, Any]) -> None:
    """Print the table (rich on a terminal, tabs elsewhere) and what comes next."""
    from rich.console import Console

    console = Console()
    table = list(rows(run))
    if console.is_terminal:
        _rich_table(console, table)
    else:
        # the long reason of a failure has no report beside it
        widths = [max((len(row[i]) for row in table if row[3] or i < 2), default=0) for i in range(3)]
        for row in table:
            cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)]
            print("  ".join([*cells, row[3]]).rstrip())
    print("\n".join(next_steps(run)))


def _rich_table(console: Any, table: list[tuple[str, str, str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    shown = Table("stage", "state", "figure", "report", box=None, header_style="bold", pad_edge=False)
    for name, state, figure, report in table:
        shown.add_row(name, Text(state, STYLES[state.split()[0]]), Text(figure), Text(report, "dim"))
    console.print(shown)


def next_steps(run: Mapping[str, Any]) -> Iterator[str]:
    """Where the results lie, and the command that comes next."""
    stages = run.get("stages", {})
    failed = [name for name, entry in stages.items() if entry["state"] == "Failed"]
    yield ""
    yield f"{sum(e['state'] == 'Completed' for e in stages.values())} of {len(stages)} stages ran"
    for label, path in (
        ("release", "export/release"),
        ("report", "reports/evaluation/table.md"),
        ("lineage", ".anneal/lineage.md"),
    ):
        if Path(path).exists():
            yield f"  {label:8} {path}"
    if failed:
        yield f"  next     mend {failed[0]}, then `anneal run` again: what is done stays done"
    elif any(entry["state"] == "Cancelled" for entry in stages.values()):
        yield "  next     `anneal run` goes on from the last checkpoints"
    elif Path("export/release").exists():
        yield "  next     `anneal verify export/release`, then `git add dvc.lock && git commit`"
