"""evaluate: every model of the pipeline answers the same held-out rows.

Reads   models/{base,sft,dpo,ppo,reward}, the models in evaluate.others, the panel file of evaluate.panel,
        data/curated/{validation,evaluation}.parquet; with evaluate.few_shot data/curated/train.parquet
Writes  reports/evaluation/{answers.parquet,table.md}, reports/evaluate.json, reports/plots/evaluate.{csv,png}
Run     python -m tasks.evaluate

The split `validation` is there for `choose`, which selects on it; results are read off the other splits.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.lib.data.rows import content_id, read_parquet, write_parquet
from tasks.lib.evaluation.answers import (
    Answers,
    Samples,
    TokenizedRows,
    answer_rows,
    sample_rows,
    spelling,
    tokenize_rows,
)
from tasks.lib.evaluation.compared_models import FEW_SHOT, compared_folders
from tasks.lib.evaluation.few_shot import EXAMPLE_COLUMNS, Example, examples_of, few_shot_prompts
from tasks.lib.evaluation.figures import CHANCE, MAJORITY, TITLES, Columns, figures_of, places_by_split
from tasks.lib.evaluation.measures import content_metric
from tasks.lib.evaluation.panel import Panel, read_panel
from tasks.lib.evaluation.tables import table_of, table_per_task
from tasks.lib.evaluation.win_rates import gold_judge, panel_judge, wins, wins_by_score
from tasks.lib.models.chat import all_answer_ids, load_tokenizer
from tasks.lib.models.loading import load_policy
from tasks.lib.models.model_folder import replaced_folder, weights_hash
from tasks.lib.plots import bars
from tasks.lib.reward.reward_model import load_reward, score
from tasks.lib.settings.evaluate import Params
from tasks.lib.stage import Problem, Stage, main

TRAINING = Path("data/curated/train.parquet")
ROWS = (Path("data/curated/validation.parquet"), Path("data/curated/evaluation.parquet"))
REWARD, OUT = Path("models/reward"), Path("reports/evaluation")
PLOT = Path("reports/plots/evaluate")
Row = dict[str, Any]

NOTE = """\
Greedy answers; means with 95 % bootstrap intervals over rows.

- exact match: the answer, its closing aside, is the label
{score}- rank classification (rows with choices): the likeliest choice is the label
- win rate: against {reference}, ties count half
- KL: from {reference}, estimated on one answer per row sampled at temperature 1
{few_shot}- guess: a choice at random (0 for free answers); constant: the best constant answer per task, with hindsight

Models are selected on the split `validation`: its figures flatter the chosen one. The others are results."""
SCORE_NOTE = "- score: how right the answer is, 0 to 1, by the measure of its task (docs/data.md)\n"
FEW_SHOT_NOTE = f"""\
- {FEW_SHOT}: the base model, with up to {{count}} solved training examples as earlier turns of each prompt: of the
  row's template; of its task where the template is held out; of other tasks where the task is held out
"""
PRINTED = ("exact_match", "score", "rank_classification", "win_rate", "gold", "closing", "kl")
VALUES = (
    "exact_match",
    "score",
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
    [pa.field(name, pa.string(), nullable=False) for name in WORDS]
    + [
        pa.field("choice", pa.string()),  # the likeliest of the choices
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("ended", pa.bool_(), nullable=False),
    ]
    + [pa.field(name, pa.float64()) for name in VALUES]  # null where a metric does not apply
)


def run(params: Params, stage: Stage) -> None:
    # 1. Rows and panel first: a mistake in them should not cost the time of a model.
    folders = compared_folders(params.models, params.others, params.few_shot > 0)
    rows = held_out_rows(params)
    training = read_parquet(TRAINING, EXAMPLE_COLUMNS) if params.few_shot else []
    examples = examples_of(rows, training, params.few_shot)
    panel = None if params.judge == "none" else read_panel(params.panel)

    # 2. One model after the other answers.
    answers, further, tokenized = answers_of_models(folders, params, stage, rows, examples)

    # 3. A value per row for every metric of every model.
    columns = {name: answers[name].columns(rows, panel) for name in folders}
    for name, of_model in further.items():
        columns[name] |= of_model
    add_rewards(columns, answers, rows, tokenized, params)
    add_win_rates(columns, answers, rows, panel, params, stage)

    # 4. Figures, tables, plots.
    seed = stage.seed_of("bootstrap")
    figures = figures_of(rows, columns, params.reference, seed=seed, draws=params.bootstrap_draws)
    metric = content_metric(columns[params.reference])
    few_shot = FEW_SHOT_NOTE.format(count=params.few_shot) if params.few_shot else ""
    note = NOTE.format(reference=params.reference, few_shot=few_shot, score=SCORE_NOTE if metric == "score" else "")
    page = f"# Evaluation\n\n{note}\n\n{table_of(figures, TITLES)}\n"
    title = TITLES[metric].capitalize()
    page += f"\n## {title} / rank classification per task\n\n{table_per_task(rows, columns)}\n"
    with replaced_folder(OUT) as folder:
        write_parquet(folder / "answers.parquet", answers_table(rows, answers, columns), ANSWERS)
        (folder / "table.md").write_text(page, encoding="utf-8")
    panels = {title: metric, "Rank classification": "rank_classification"}
    if panel:
        panels[f"Win rate against {params.reference}"] = "win_rate"
    levels = {CHANCE: "guess", MAJORITY: "best constant answer"}
    bars(PLOT, figures.bars(), "split", "model", panels, levels)
    report = figures.flat()
    for name, model_folder in folders.items():
        report[f"{name}.weights"] = weights_hash(model_folder)
    stage.report(report)
    print(table_of(figures, PRINTED), flush=True)


def held_out_rows(params: Params) -> list[Row]:
    """At most `limit_per_split` rows of each split, chosen by a hash of the id alone."""
    rows: list[Row] = []
    for path in ROWS:
        rows += read_parquet(path)
    if not rows:
        raise Problem(f"{', '.join(map(str, ROWS))}: no rows to evaluate on; data/curated/ledger.parquet says why")
    splits: dict[str, list[Row]] = {"validation": [], "rows": [], "templates": [], "clusters": []}
    for row in sorted(rows, key=lambda row: content_id("evaluate", row["id"])):
        splits.setdefault(row["split"], []).append(row)
    chosen: list[Row] = []
    for of_split in splits.values():
        chosen += of_split[: params.limit_per_split]
    return chosen


def answers_of_models(
    folders: dict[str, Path], params: Params, stage: Stage, rows: list[Row], examples: list[list[Example]]
) -> tuple[dict[str, Answers], dict[str, Columns], TokenizedRows]:
    """Every model's answers, what only some models have per row (N,), and the rows as ids.

    Models that are listed after the reference have a KL from it, base_few_shot has its number of examples.

    Each model is loaded once, one at a time: the reference comes last and scores what the others sampled.
    """
    names = list(folders)
    after_reference = names[names.index(params.reference) + 1 :]
    sizes = {"max_new_tokens": params.max_new_tokens, "batch_size": params.batch_size}
    sampled_places: list[int] = []
    for places in places_by_split(rows).values():
        sampled_places += places[: params.kl_prompts].tolist()

    answers: dict[str, Answers] = {}
    further: dict[str, Columns] = {}
    samples: dict[str, Samples] = {}
    reference_tokenizer = load_tokenizer(folders[params.reference])
    tokenized = tokenize_rows(reference_tokenizer, rows)
    model: Any = None
    for done, name in enumerate(sorted(names, key=lambda name: name == params.reference), 1):
        tokenizer, model = load_tokenizer(folders[name]), load_policy(folders[name])
        has_kl = name in after_reference and name != FEW_SHOT
        if has_kl and spelling(tokenizer) != spelling(reference_tokenizer):
            if name in params.models:
                where = f"params.yaml: evaluate.models: {name} has another tokenizer than {params.reference}"
                raise Problem(f"{where}, so there is no KL between them; list {name} before {params.reference}")
            print(f"evaluate: {name} has another tokenizer than {params.reference}: no KL between them", flush=True)
            has_kl = False
        tokenized = tokenize_rows(tokenizer, rows, tokenized)
        asked = tokenized
        if name == FEW_SHOT:
            asked, further[name] = few_shot_rows(model, tokenizer, rows, examples, tokenized, params)
        answers[name] = answer_rows(model, tokenizer, rows, asked, **sizes)
        if has_kl and sampled_places:
            seed = stage.seed_of("kl", name)
            samples[name] = sample_rows(model, tokenizer, tokenized, sampled_places, seed=seed, **sizes)
        stage.progress(done, len(names))

    for name, sampled in samples.items():  # the last model is the reference
        further[name] = {"kl": sampled.kl_from(model, len(rows), params.batch_size)}
    return answers, further, tokenized


def few_shot_rows(
    model: Any,
    tokenizer: Any,
    rows: list[Row],
    examples: list[list[Example]],
    tokenized: TokenizedRows,
    params: Params,
) -> tuple[TokenizedRows, Columns]:
    """The rows with as many examples in their prompts as leave room for an answer and each choice; how many (N,)."""
    room = params.max_new_tokens
    for choices in tokenized.choices:
        room = max(room, *map(len, choices), 0)
    context = getattr(model.config, "max_position_embeddings", None) or math.inf
    prompts, kept = few_shot_prompts(tokenizer, rows, examples, context - room)
    cut = sum(count < len(of_row) for count, of_row in zip(kept, examples, strict=True))
    if cut:
        print(f"evaluate: {FEW_SHOT}: {cut} of {len(rows)} prompts have no room for {params.few_shot} examples, and "
              f"have fewer; the model has {context} positions", flush=True)  # fmt: skip
    return replace(tokenized, prompts=prompts), {"examples": np.array(kept, dtype=np.float64)}


def add_rewards(
    columns: dict[str, Columns],
    answers: dict[str, Answers],
    rows: list[Row],
    tokenized: TokenizedRows,
    params: Params,
) -> None:
    """The reward model's score of every answer's text; an answer that was cut gets no EOS here either."""
    if not params.reward:
        return
    tokenizer, model = load_tokenizer(REWARD), load_reward(REWARD)
    prompts = tokenize_rows(tokenizer, rows, tokenized).prompts
    for name, of_model in answers.items():
        scored: list[list[int]] = []
        for ids, ended in zip(all_answer_ids(tokenizer, of_model.texts), of_model.ended, strict=True):
            scored.append(ids if ended else ids[:-1])
        columns[name]["reward"] = np.array(score(model, prompts, scored, batch_size=params.batch_size))


def add_win_rates(
    columns: dict[str, Columns],
    answers: dict[str, Answers],
    rows: list[Row],
    panel: Panel | None,
    params: Params,
    stage: Stage,
) -> None:
    """How far each model's answers are preferred to the reference's, by the judge and by the reward model."""
    of_reference = columns[params.reference]
    for name, of_model in columns.items():
        if name == params.reference:
            continue
        if panel:
            is_noisy = params.judge == "panel"
            judge = panel_judge(panel, stage.seed_of("panel", name)) if is_noisy else gold_judge(panel)
            of_model["win_rate"] = wins(judge, rows, answers[name].texts, answers[params.reference].texts)
        if params.reward:
            of_model["reward_win_rate"] = wins_by_score(of_model["reward"], of_reference["reward"])


def answers_table(rows: list[Row], answers: dict[str, Answers], columns: dict[str, Columns]) -> list[Row]:
    """One line per model and row, for reading and for joining with the rows by id."""
    lines: list[Row] = []
    for model, of_model in columns.items():
        given = answers[model]
        for place, row in enumerate(rows):
            line: Row = {word: row[word] for word in ("id", "split", "task", "template", "label")}
            line |= {"model": model, "answer": given.texts[place], "choice": given.choices[place]}
            line |= {"tokens": given.tokens[place], "ended": given.ended[place]}
            for metric in VALUES:
                value = float(of_model[metric][place]) if metric in of_model else math.nan
                line[metric] = None if math.isnan(value) else value
            lines.append(line)
    return lines


if __name__ == "__main__":
    main(__file__, Params, run)
