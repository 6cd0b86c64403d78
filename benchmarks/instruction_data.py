"""How fast templates render, what a million rows need, what contracts cost, what curation finds.

    python -m benchmarks.instruction_data [rendering] [memory] [contracts] [curation]

Times are CPU seconds. Every part checks the work that it times: rendering must make the texts of plain Jinja, `render`
must write every row, contracts must find the violations that were planted, curation is measured against what was.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tasks.lib.data.rows import content_id
from tasks.lib.data.template_files import read_templates
from tasks.lib.data.templates import Rendered, Template, render
from tasks.lib.data.time_limit import watched
from tasks.lib.stage import PARAMS_FILE, read_yaml

ROOT = Path(__file__).resolve().parents[1]
SYLLABLES = (
    ("mor", "tel", "vin", "sar", "pol", "gan", "rit", "bel"),
    ("ta", "no", "mi", "ka", "re", "lo", "da", "su", "fe", "wi", "zo", "ha", "pe", "gu", "xi", "by"),
)
WORDS = [first + last for first, last in product(*SYLLABLES)]
SHARES = {"train": 0.6, "preference": 0.1, "policy": 0.1, "validation": 0.1, "test": 0.1}

# (prompt, answer, choices): the first three only substitute fields
TEMPLATES: dict[str, tuple[str, str, list[str] | None]] = {
    "review": ("Is this review good or bad? {{ text }}", "{{ answer_choices[label] }}", ["bad", "good"]),
    "pair": ("{{ premise }} Does it follow that {{ text }}?", "{{ answer_choices[label] }}", ["no", "yes"]),
    "copy": ("Say again, with 100% care: {{ text }}", "{{ text }}", None),
    "condition": (
        "{% if label == 1 %}Praise{% else %}Blame{% endif %}: {{ text }}",
        "{{ answer_choices[label] }}",
        ["bad", "good"],
    ),
    "loop": (
        "{% for name in names %}{{ loop.index }}. {{ name }}\n{% endfor %}{{ text }}",
        "{{ names[label] }}",
        None,
    ),
    "filter": ("{{ text | upper }} {{ names | join(', ') }}", "{{ names | length }} {{ label }}", None),
}


def sentence(dice: random.Random, words: int = 16) -> str:
    return " ".join(dice.choices(WORDS, k=words))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result and the least CPU seconds of three runs."""
    seconds, result = [], None
    for _ in range(3):
        start = time.process_time()
        result = work()
        seconds.append(time.process_time() - start)
    return result, min(seconds)


def rendering(rows: int = 20_000) -> None:
    """Ours against datasets.map with plain Jinja, a row at a time and in batches; from table to table."""
    import datasets

    datasets.disable_caching()
    datasets.disable_progress_bars()
    dice = random.Random(1)
    table = pa.table(
        {
            "text": [sentence(dice) for _ in range(rows)],
            "premise": [sentence(dice) for _ in range(rows)],
            "names": [dice.sample(WORDS, 4) for _ in range(rows)],
            "label": [dice.randrange(2) for _ in range(rows)],
        }
    )
    print(f"rendering {rows:,} rows, CPU microseconds a row; datasets {datasets.__version__}")
    for name in TEMPLATES:
        compare(name, table)


def compare(name: str, table: pa.Table) -> None:
    """Time one template over a table; all ways must make the same texts."""
    import datasets
    from jinja2 import Environment, StrictUndefined

    prompt, answer, choices = TEMPLATES[name]
    template = read_template(prompt, answer, choices)
    environment = Environment(undefined=StrictUndefined)
    asked, answered = environment.from_string(prompt), environment.from_string(answer)

    def a_row(row: dict[str, Any]) -> dict[str, str]:
        row = {**row, "answer_choices": choices}
        return {"prompt": asked.render(row).strip(), "answer": answered.render(row).strip()}

    def a_batch(batch: dict[str, list[Any]]) -> dict[str, list[str]]:
        made: dict[str, list[str]] = {"prompt": [], "answer": []}
        for values in zip(*batch.values(), strict=True):
            for key, text in a_row(dict(zip(batch, values, strict=True))).items():
                made[key].append(text)
        return made

    few = len(table) // 4  # a row at a time is slow
    by_rows, by_batches = datasets.Dataset(table.slice(0, few)), datasets.Dataset(table)
    one_by_one, slow = timed(lambda: by_rows.map(a_row, remove_columns=table.column_names))
    batched, fast = timed(lambda: by_batches.map(a_batch, batched=True, remove_columns=table.column_names))
    made, own = timed(lambda: rendered(template, table))
    for column in ("prompt", "answer"):
        assert made[column].to_pylist() == list(batched[column]), f"{name}: not the same {column}"
        assert list(one_by_one[column]) == list(batched[column])[:few]
    slow, fast, own = slow / few * 1e6, fast / len(table) * 1e6, own / len(table) * 1e6
    kind = "substitutes" if template.substitution else "Jinja"
    print(
        f"  {name:10} {kind:12} ours {own:6.2f}   map {slow:7.2f} ({slow / own:5.1f}x)"
        f"   batched map {fast:6.2f} ({fast / own:4.1f}x)",
        flush=True,
    )


def read_template(prompt: str, answer: str, choices: list[str] | None) -> Template:
    """The template as a project has it."""
    with tempfile.TemporaryDirectory() as folder:
        write_template(Path(folder), prompt, answer, choices)
        (template,) = read_templates(Path(folder))
    return template


def write_template(folder: Path, prompt: str, answer: str, choices: list[str] | None) -> None:
    keys: dict[str, Any] = {"prompt": prompt, "answer": answer}
    if choices:
        keys["choices"] = choices
    (folder / "one.yaml").write_text(json.dumps(keys))


def rendered(template: Template, table: pa.Table) -> pa.Table:
    """What ours makes of a table."""
    names = sorted(template.fields)
    columns = [table[name].to_pylist() for name in names]
    prompts, answers = [], []
    with watched():
        for values in zip(*columns, strict=True):
            made = render(template, dict(zip(names, values, strict=True)), "here", "seed")
            assert isinstance(made, Rendered)
            prompts.append(made.prompt)
            answers.append(made.answer)
    return pa.table({"prompt": prompts, "answer": answers})


def memory() -> None:
    """Peak memory of the stage `render` over 100 000 and over 1 000 000 rows of a CSV, as a process of its own."""
    peaks = {}
    for rows in (100_000, 1_000_000):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_project(folder, rows)
            stage = subprocess.Popen([sys.executable, "-m", "tasks.render"], cwd=folder, stdout=subprocess.DEVNULL,
                                     env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
            _, status, used = os.wait4(stage.pid, 0)
            written = pa.parquet.ParquetFile(folder / "data/instructions/rows.parquet").metadata.num_rows
        assert (status, written) == (0, rows), f"{written} of {rows} rows"
        peaks[rows] = used.ru_maxrss / 2**10
        seconds = used.ru_utime + used.ru_stime
        print(f"  {rows:>9,} rows: peak {peaks[rows]:.0f} MiB, {seconds:.0f} CPU s", flush=True)
    print(f"  ten times the rows, {peaks[1_000_000] / peaks[100_000]:.2f} times the memory")


def write_project(folder: Path, rows: int) -> None:
    """A project of one task whose source is a CSV of `rows` rows; nothing in it is held out, mixed or dropped."""
    dice = random.Random(2)
    with (folder / "rows.csv").open("w") as file:
        file.write("text,label\n")
        for i in range(rows):
            file.write(f"{sentence(dice)} {i},{i % 2}\n")
    (folder / "source.yaml").write_text(
        "file: rows.csv\nformat: csv\nlicense: MIT\ncluster: c\ntask: toy\ntemplates: toy\n"
        "fields: {text: str, label: int}\n"
    )
    (folder / "toy").mkdir()
    write_template(folder / "toy", *TEMPLATES["review"])
    params = read_yaml(ROOT / PARAMS_FILE)
    params["render"] |= {"raw": ".", "sources": ".", "templates": ".", "shares": SHARES, "heldout_clusters": [],
                         "max_per_task": rows, "max_per_task_evaluation": rows, "show": 0}  # fmt: skip
    (folder / PARAMS_FILE).write_text(json.dumps(params))


def instructions(rows: int) -> Iterator[dict[str, Any]]:
    """Honest instruction rows, all different."""
    dice = random.Random(3)
    for i in range(rows):
        text, label = sentence(dice, 20), ("bad", "good")[i % 2]
        messages = [{"role": "user", "content": f"Is this review good or bad? {text}"}]
        yield {
            "id": content_id(i, text), "source": "made", "license": "MIT", "cluster": "c", "task": "review",
            "template": "review/one", "split": "train", "messages": messages, "answer": label,
            "choices": ["bad", "good"], "label": label, "measure": "exact", "row": content_id(text), "text": text,
        }  # fmt: skip


def contracts(rows: int = 100_000) -> None:
    """The contract of instructions over that many rows, three of them broken; imports included."""
    given = list(instructions(rows))
    given[10] = {**given[10], "answer": " "}
    given[20] = {**given[20], "label": "odd"}
    given[30] = {**given[30], "split": "nowhere"}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    from data_contracts.contract import check_rows

    report = check_rows("instructions", {"instructions": given})
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    violated = {result.claim: result.ids for result in report.violated}
    assert violated == {
        "no answer is empty": [given[10]["id"]],
        "the label is one of the choices": [given[20]["id"]],
        "splits are known": [given[30]["id"]],
    }, violated
    print(
        f"contract of instructions, {rows:,} rows: {seconds:.1f} CPU s with imports, peak {peak / 2**20:.2f} GiB"
        f" of which {before / 2**20:.2f} GiB were the rows"
    )


def curation(rows: int = 100_000, planted: int = 500) -> None:
    """Precision and recall of the rules against copies, near copies and leaks planted among that many rows."""
    from tasks.lib.data.rules import RULES
    from tasks.lib.settings.curate import Params

    params = Params(**read_yaml(ROOT / PARAMS_FILE)["curate"])
    given, truth = with_planted(rows, planted)
    print(f"curation of {len(given):,} rows, {planted} planted of each kind")
    for rule, ids in truth.items():
        start = time.process_time()
        dropped = {given[place]["id"] for place in RULES[rule](given, params).drop}
        seconds = time.process_time() - start
        right = len(dropped & ids)
        print(
            f"  {rule:16} precision {right / max(len(dropped), 1):.4f}  recall {right / planted:.4f}"
            f"  {len(dropped)} dropped  {seconds:.1f} CPU s",
            flush=True,
        )
        given = [row for row in given if row["id"] not in dropped]


def with_planted(rows: int, planted: int) -> tuple[list[dict[str, Any]], dict[str, set[str]]]:
    """So many rows, and the ids of those in it that each rule (its name in RULES) should find."""
    dice = random.Random(4)
    honest = list(instructions(rows))[: rows - 3 * planted]
    evaluation = [{**row, "split": "rows"} for row in honest[:2000]]
    training = honest[2000:]
    truth: dict[str, set[str]] = {"exact duplicate": set(), "near duplicate": set(), "contamination": set()}
    for i, row in enumerate(dice.sample(training, planted)):
        copy = {**row, "id": content_id("copy", i), "row": content_id("copy of", i)}
        truth["exact duplicate"].add(copy["id"])
        training.append(copy)
    for i, row in enumerate(dice.sample(training[: rows // 2], planted)):
        near = changed(row, row["text"] + " " + sentence(dice, 1 + i % 2), i)  # 18 of 19 or 20 shingles stay
        truth["near duplicate"].add(near["id"])
        training.append(near)
    for i, row in enumerate(dice.sample(evaluation, planted)):
        part = " ".join(row["text"].split()[i % 5 : 12 + i % 5])  # 12 of 20 words, in another text
        leak = changed(row, f"{sentence(dice, 8)} {part} {sentence(dice, 8)}", i)
        truth["contamination"].add(leak["id"])
        training.append({**leak, "split": "train"})
    return evaluation + training, truth


def changed(row: dict[str, Any], text: str, number: int) -> dict[str, Any]:
    """The row with another text, under ids of its own."""
    return {
        **row,
        "id": content_id("planted", number, text),
        "row": content_id(text, number),
        "text": text,
        "messages": [{"role": "user", "content": f"Is this review good or bad? {text}"}],
    }


PARTS = {part.__name__: part for part in (rendering, memory, contracts, curation)}

if __name__ == "__main__":
    names = sys.argv[1:] or list(PARTS)
    for name in names:
        if name not in PARTS:
            sys.exit(f"{name} is no part; known: {', '.join(PARTS)}")
    for name in names:
        PARTS[name]()
