"""evaluate: every model of the line answers the same held-out rows.

Reads   models/{base,sft,dpo,ppo,reward}, the models in evaluate.others, data/curated/{validation,evaluation}.parquet,
        the panel file of evaluate.panel
Writes  reports/evaluation/{answers.parquet,table.md}, reports/evaluate.json, reports/plots/evaluate.{csv,png}
Run     python -m tasks.evaluate

The split `validation` is there for `choose`, which selects on it; results are read off the other splits.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.lib.data.rows import content_id, read_parquet, write_parquet
from tasks.lib.evaluation.answers import (
    Answers,
    Encoded,
    Samples,
    answer_rows,
    encoded,
    sample_rows,
    spelling,
)
from tasks.lib.evaluation.compared_models import compared_folders
from tasks.lib.evaluation.figures import TITLES, Columns, summarised, table_per_task
from tasks.lib.evaluation.judge import Panel, read_panel
from tasks.lib.evaluation.win_rates import gold_judge, panel_judge, wins, wins_by_score
from tasks.lib.models.chat import all_answer_ids, load_tokenizer
from tasks.lib.models.loading import load_policy
from tasks.lib.models.model_folder import replaced_folder, weights_hash
from tasks.lib.plots import bars
from tasks.lib.reward.reward_model import load_reward, score
from tasks.lib.settings.evaluate import Params
from tasks.lib.stage import Problem, Stage, main

ROWS = (Path("data/curated/validation.parquet"), Path("data/curated/evaluation.parquet"))
REWARD, OUT = Path("models/reward"), Path("reports/evaluation")
PLOT = Path("reports/plots/evaluate")
Row = dict[str, Any]

NOTE = """\
Greedy answers; means with 95 % bootstrap intervals over rows.

- exact match: the answer, its closing aside, is the label
- rank classification (rows with choices): the likeliest choice is the label
- win rate: against {reference}, ties count half
- KL: from {reference}, estimated on one answer per row sampled at temperature 1
- guess: a choice at random (0 for free answers); constant: the best constant answer per task, with hindsight

Models are selected on the split `validation`: its figures flatter the chosen one. The others are results."""
PRINTED = ("exact_match", "rank_classification", "win_rate", "gold", "closing", "kl")
VALUES = (
    "exact_match",
    "rank_classification",
    "win_rate",
    "reward_win_rate",
    "gold",
    "closing",
    "reward",
    "kl",
)
WORDS = ("id", "split", "task", "template", "model", "label", "answer")
ANSWERS = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in WORDS),
        pa.field("choice", pa.string()),  # the likeliest of the choices
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("ended", pa.bool_(), nullable=False),
        *(pa.field(name, pa.float64()) for name in VALUES),  # null where a metric does not apply
    ]
)


def run(params: Params, stage: Stage) -> None:
    # 1. Rows and judges first: a mistake in them should not cost the time of a model.
    folders = compared_folders(params.models, params.others)
    rows = held_out_rows(params)
    panel = None if params.judge == "none" else read_panel(params.panel)

    # 2. One model after the other answers.
    answers, divergence, ids_of = answered(folders, params, stage, rows)

    # 3. A value per row for every metric of every model.
    columns = {name: answers[name].columns(rows, panel) for name in folders}
    for name, values in divergence.items():
        columns[name]["kl"] = values
    add_rewards(columns, answers, rows, ids_of, params)
    add_win_rates(columns, answers, rows, panel, params, stage)

    # 4. Figures, tables, plots.
    seed = stage.seed_of("bootstrap")
    figures = summarised(rows, columns, params.reference, seed=seed, draws=params.bootstrap_draws)
    table, note = figures.table(TITLES), NOTE.format(reference=params.reference)
    with replaced_folder(OUT) as folder:
        write_parquet(folder / "answers.parquet", answer_lines(rows, answers, columns), ANSWERS)
        text = f"# Evaluation\n\n{note}\n\n{table}\n\n## Exact match / rank classification per task\n\n"
        (folder / "table.md").write_text(text + table_per_task(rows, columns) + "\n", encoding="utf-8")
    panels = {"Exact match": "exact_match", "Rank classification": "rank_classification"}
    panels |= {f"Win rate against {params.reference}": "win_rate"} if panel else {}
    levels = {"chance": "guess", "majority": "best constant answer"}
    bars(PLOT, figures.lines(), "split", "model", panels, levels)
    weights = {f"{name}.weights": weights_hash(folder) for name, folder in folders.items()}
    stage.report({**figures.flat(), **weights})
    print(figures.table(PRINTED), flush=True)


def held_out_rows(params: Params) -> list[Row]:
    """At most `limit_per_split` rows of each split, chosen by a hash of the id alone."""
    found = [row for path in ROWS for row in read_parquet(path)]
    if not found:
        raise Problem(f"{', '.join(map(str, ROWS))}: no rows to evaluate on; data/curated/ledger.parquet says why")
    splits: dict[str, list[Row]] = {split: [] for split in ("validation", "rows", "templates", "clusters")}
    for row in sorted(found, key=lambda row: content_id("evaluate", row["id"])):
        splits.setdefault(row["split"], []).append(row)
    return [row for some in splits.values() for row in some[: params.limit_per_split]]


def answered(
    folders: dict[str, Path], params: Params, stage: Stage, rows: list[Row]
) -> tuple[dict[str, Answers], dict[str, np.ndarray], Encoded]:
    """Every model's answers, the KL per sample of those listed after the reference, and the rows as ids.

    Each model is loaded once, one at a time: the reference comes last and scores what the others sampled.
    """
    names = list(folders)
    after = names[names.index(params.reference) + 1 :]
    answers: dict[str, Answers] = {}
    samples: dict[str, Samples] = {}
    splits = [[i for i, row in enumerate(rows) if row["split"] == split] for split in splits_of(rows)]
    places = [place for some in splits for place in some[: params.kl_prompts]]
    sizes = {"max_new_tokens": params.max_new_tokens, "batch_size": params.batch_size}
    reference = load_tokenizer(folders[params.reference])
    ids_of = encoded(reference, rows)
    for done, name in enumerate(sorted(names, key=lambda each: each == params.reference), 1):
        tokenizer, model = load_tokenizer(folders[name]), load_policy(folders[name])
        if name in after and spelling(tokenizer) != spelling(reference):
            if name in params.models:
                where = f"params.yaml: evaluate.models: {name} has another tokenizer than {params.reference}"
                raise Problem(f"{where}, so there is no KL between them; list {name} before {params.reference}")
            print(f"evaluate: {name} has another tokenizer than {params.reference}: no KL between them", flush=True)
            after.remove(name)
        ids_of = encoded(tokenizer, rows, ids_of)
        answers[name] = answer_rows(model, tokenizer, rows, ids_of, **sizes)
        if name in after and places:
            seed = stage.seed_of("kl", name)
            samples[name] = sample_rows(model, tokenizer, ids_of, places, seed=seed, **sizes)
        stage.progress(done, len(names))
    kl = {name: drawn.kl_from(model, len(rows), params.batch_size) for name, drawn in samples.items()}
    return answers, kl, ids_of


def splits_of(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["split"] for row in rows))


def add_rewards(
    columns: dict[str, Columns],
    answers: dict[str, Answers],
    rows: list[Row],
    ids_of: Encoded,
    params: Params,
) -> None:
    """The reward model's score of every answer's text; an answer that was cut gets no EOS here either."""
    if not params.reward:
        return
    tokenizer, model = load_tokenizer(REWARD), load_reward(REWARD)
    prompts = encoded(tokenizer, rows, ids_of).prompts
    for name, given in answers.items():
        ids = all_answer_ids(tokenizer, given.texts)
        ids = [each if ended else each[:-1] for each, ended in zip(ids, given.ended, strict=True)]
        columns[name]["reward"] = np.array(score(model, prompts, ids, batch_size=params.batch_size))


def add_win_rates(
    columns: dict[str, Columns],
    answers: dict[str, Answers],
    rows: list[Row],
    panel: Panel | None,
    params: Params,
    stage: Stage,
) -> None:
    """How far each model's answers are preferred to the reference's, by the judge and by the reward model."""
    labels, theirs = [row["label"] for row in rows], params.reference
    for name in columns.keys() - {theirs}:
        if panel:
            votes = params.judge == "panel"
            judge = panel_judge(panel, stage.seed_of("panel", name)) if votes else gold_judge(panel)
            columns[name]["win_rate"] = wins(judge, labels, answers[name].texts, answers[theirs].texts)
        if params.reward:
            mine, other = columns[name]["reward"], columns[theirs]["reward"]
            columns[name]["reward_win_rate"] = wins_by_score(mine, other)


def answer_lines(rows: list[Row], answers: dict[str, Answers], columns: dict[str, Columns]) -> list[Row]:
    """One line per model and row, for reading and for joining with the rows by id."""
    lines = []
    for model, mine in columns.items():
        given = answers[model]
        numbers = {name: mine.get(name, np.full(len(rows), math.nan)) for name in VALUES}
        for i, row in enumerate(rows):
            line = {word: row[word] for word in ("id", "split", "task", "template", "label")}
            line |= {"model": model, "answer": given.texts[i], "choice": given.choices[i]}
            line |= {"tokens": given.tokens[i], "ended": given.ended[i]}
            lines.append(line | {name: none_if_nan(float(values[i])) for name, values in numbers.items()})
    return lines


def none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


if __name__ == "__main__":
    main(__file__, Params, run)
