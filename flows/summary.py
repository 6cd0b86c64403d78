"""What a run says at its end: a table of stages, where the release and the report lie, what to type next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import reports
from flows.outcome import DONE, StageState

if TYPE_CHECKING:
    from rich.console import Console

# stage -> (label, key of the figure before | None, key after); both keys are read from reports/<stage>.json
HEADLINES: dict[str, tuple[str, str | None, str]] = {
    "base": ("perplexity", "perplexity_before", "perplexity"),
    "probe": ("probes that the model failed", None, "failed"),
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

STYLES: dict[StageState, str] = {  # of rich
    "Completed": "green",
    "Cached": "cyan",
    "Failed": "bold red",
    "Skipped": "dim",
    "Cancelled": "yellow",
}


@dataclass(frozen=True)
class Row:
    """One stage in the table of a run."""

    stage: str
    state: StageState
    seconds: float
    figure: str  # the figure that matters, or why there is none
    report: str  # its path, "" without one

    def cells(self) -> tuple[str, str, str, str]:
        state: str = self.state
        if self.state == "Completed":
            state += f" {self.seconds:.1f} s"
        return self.stage, state, self.figure, self.report


def rows(run: Mapping[str, Any], folder: Path = reports.FOLDER) -> Iterator[Row]:
    """A row per stage of .anneal/run.json."""
    for name, entry in run.get("stages", {}).items():
        figure, report = entry["reason"].split("\n")[0], ""
        if entry["state"] in DONE:
            figure = headline(name, reports.figures(name, folder))
            path = reports.path_of(name, folder)
            if path.is_file():
                report = str(path)
        yield Row(name, entry["state"], entry["seconds"], figure, report)


def headline(name: str, report: Mapping[str, Any]) -> str:
    """`exact match 0 -> 0.88`, or the first entry of a report without the figure that HEADLINES names."""
    label, before, after = HEADLINES.get(name, HEADLINES.get(name.split("@")[0], ("", None, "")))
    of_score = after.replace("exact_match", "score")  # where tasks have measures, the score is the better figure
    if of_score != after and of_score in report:
        label, after = label.replace("exact match", "score"), of_score
        before = before and before.replace("exact_match", "score")
    if after in report:
        if before is not None and before in report:
            return f"{label} {_shown(report[before])} -> {_shown(report[after])}"
        return f"{label} {_shown(report[after])}"
    for key, value in report.items():
        if not isinstance(value, bool):
            return f"{key.replace('_', ' ')} {_shown(value)}"
    return ""


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def show(run: Mapping[str, Any]) -> None:
    """Print the table (rich on a terminal, plain columns elsewhere) and what comes next."""
    from rich.console import Console

    console = Console()
    table = list(rows(run))
    if console.is_terminal:
        _print_rich(console, table)
    else:
        _print_plain(table)
    print("\n".join(next_steps(run)))


def _print_plain(table: Sequence[Row]) -> None:
    widths = [0, 0, 0]
    for row in table:
        for column, cell in enumerate(row.cells()[:3]):
            if row.report or column < 2:  # not of a failure's long reason, which has no report
                widths[column] = max(widths[column], len(cell))
    for row in table:
        *cells, report = row.cells()
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        print("  ".join([*padded, report]).rstrip())


def _print_rich(console: Console, table: Sequence[Row]) -> None:
    from rich.table import Table
    from rich.text import Text

    shown = Table("stage", "state", "figure", "report", box=None, header_style="bold", pad_edge=False)
    for row in table:
        stage, state, figure, report = row.cells()
        shown.add_row(stage, Text(state, STYLES[row.state]), Text(figure), Text(report, "dim"))
    console.print(shown)


def next_steps(run: Mapping[str, Any]) -> Iterator[str]:
    """Where the results lie, and the command that comes next."""
    stages = run.get("stages", {})
    states = [entry["state"] for entry in stages.values()]
    yield ""
    yield f"{states.count('Completed')} of {len(stages)} stages ran"
    for label, path in (
        ("release", "export/release"),
        ("report", "reports/evaluation/table.md"),
        ("lineage", ".anneal/lineage.md"),
    ):
        if Path(path).exists():
            yield f"  {label:8} {path}"
    if "Failed" in states:
        failed = list(stages)[states.index("Failed")]
        yield f"  next     fix {failed}, then `anneal run` again: finished stages do not run again"
    elif "Cancelled" in states:
        yield "  next     `anneal run` continues from the last checkpoints"
    elif Path("export/release").exists():
        yield "  next     `anneal verify export/release`, then `git add dvc.lock && git commit`"
