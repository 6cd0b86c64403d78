"""sample: several different answers per prompt from the SFT model, for people to rank.

Reads   models/sft, data/curated/preference.parquet, with choice: disagreement the ensemble in sample.reward
Writes  data/candidates/candidates.parquet, data/candidates/labelstudio_{tasks.json,config.xml} (import these
        two into Label Studio for a real annotation round; sample.tasks: other tools), reports/sample.json
Run     python -m tasks.sample
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch  # noqa: F401  so that main seeds it and limits its threads

from tasks.lib.annotation.tool_tasks import task_files
from tasks.lib.data.rows import CANDIDATE, Row, content_id, read_parquet, write_parquet
from tasks.lib.importers.rankings import collapse_whitespace
from tasks.lib.models.chat import all_prompt_ids, answer_text, load_tokenizer
from tasks.lib.models.generation import generate
from tasks.lib.models.loading import load_policy
from tasks.lib.models.model_folder import weights_hash
from tasks.lib.reward.ensemble import disagreements, load_ensemble
from tasks.lib.settings.sample import Params
from tasks.lib.stage import Problem, Stage, main, replaced, write_json

MODEL = Path("models/sft")
CANDIDATES = Path("data/candidates")
BATCHES_PER_CALL = 8  # rows of like length share a batch within a call; progress is shown between calls


class Draw(NamedTuple):
    """One sampled answer."""

    text: str
    ended: bool  # by EOS, not by max_new_tokens


def run(params: Params, stage: Stage) -> None:
    model, tokenizer = load_policy(MODEL), load_tokenizer(MODEL)
    rows = sorted(read_parquet(Path("data/curated/preference.parquet")), key=lambda row: row["id"])
    ensemble = load_ensemble(params.reward) if params.choice == "disagreement" else None
    # ids are hashes: the first are a random choice that stays when rows are added
    rows = rows[: params.prompts * (params.pool if ensemble else 1)]
    draws_of = _draw(model, tokenizer, [row["messages"] for row in rows], params, stage)
    candidates = _candidates(rows, draws_of, params, stage.seed)
    figures = _figures(draws_of, candidates, params.answers, tokenizer)
    if ensemble:
        candidates, disagreement = _most_disputed(candidates, ensemble, params)
        figures |= disagreement
    if not candidates:
        raise Problem(
            f"sample: the model gave the same answer every time to each of {len(rows)} prompts; there is "
            f"nothing to rank: raise sample.temperatures (now {params.temperatures}) or sample.oversample"
        )
    write_parquet(CANDIDATES / "candidates.parquet", candidates, CANDIDATE)
    _write_tasks(candidates, params, stage.seed)
    stage.report(figures)


def _draw(
    model: Any, tokenizer: Any, prompts: list[list[dict[str, str]]], params: Params, stage: Stage
) -> list[list[Draw]]:
    """Per prompt `answers * oversample` draws, in the order of the temperatures."""
    repeats, temperatures = params.answers * params.oversample, params.temperatures
    encoded = all_prompt_ids(tokenizer, prompts)
    draws_of: list[list[Draw]] = [[] for _ in prompts]
    prompts_per_call = max(1, params.batch_size * BATCHES_PER_CALL // repeats)
    for start in range(0, len(prompts), prompts_per_call):
        end = min(start + prompts_per_call, len(prompts))
        for turn, temperature in enumerate(temperatures[:repeats]):
            draws = len(range(turn, repeats, len(temperatures)))  # of a prompt at this temperature
            answers = generate(
                model,
                encoded[start:end],
                eos_id=tokenizer.eos_token_id,
                pad_id=tokenizer.pad_token_id,
                max_new_tokens=params.max_new_tokens,
                temperature=temperature,
                top_p=params.top_p,
                batch_size=params.batch_size,
                seed=stage.seed_of(start, turn),
                draws=draws,
            )
            for number, ids in enumerate(answers):  # all draws of the first prompt, then those of the next
                ended = ids[-1:] == [tokenizer.eos_token_id]
                draws_of[start + number // draws].append(Draw(answer_text(tokenizer, ids), ended))
        stage.progress(end, len(prompts))
    return draws_of


def _candidates(rows: list[Row], draws_of: list[list[Draw]], params: Params, seed: int) -> list[Row]:
    """The prompts with two or more different answers, as rows of the schema CANDIDATE."""
    weights = weights_hash(MODEL)
    sampling = params.model_dump(include={"temperatures", "top_p", "max_new_tokens", "oversample"})
    sampling["seed"] = seed
    candidates = []
    for row, draws in zip(rows, draws_of, strict=True):
        answers = _different(draws, params.answers)
        if len(answers) < 2:
            continue
        candidate: Row = {
            "id": content_id(row["messages"], answers),
            "prompt": row["messages"],
            "answers": answers,
            "instruction": row["id"],
            "model": weights,
            "sampling": json.dumps(sampling, sort_keys=True),
        }
        candidates.append(candidate)
    return candidates


def _different(draws: list[Draw], wanted: int) -> list[str]:
    """The first `wanted` answers that differ in more than white space; those that ended come first."""
    seen: dict[str, str] = {}
    for draw in sorted(draws, key=lambda draw: not draw.ended):
        if draw.text and _is_readable(draw.text):
            seen.setdefault(collapse_whitespace(draw.text), draw.text)
    return list(seen.values())[:wanted]


def _is_readable(text: str) -> bool:
    """False for control characters and broken UTF-8: people cannot rank it, and NUL breaks the export."""
    return "\ufffd" not in text and all(c.isprintable() or c in "\n\t" for c in text)


def _most_disputed(candidates: list[Row], ensemble: tuple[Any, Any], params: Params) -> tuple[list[Row], Row]:
    """The candidates that the heads of a reward ensemble disagree about most, in their order, and figures."""
    disagreement_of = disagreements(*ensemble, candidates, batch_size=params.batch_size)  # by place
    most_first = sorted(disagreement_of, key=lambda place: (-disagreement_of[place], candidates[place]["id"]))
    chosen = sorted(most_first[: params.prompts])
    figures: Row = {"pool": len(candidates), "disagreement_pool": 0.0, "disagreement_chosen": 0.0}
    if chosen:
        figures["disagreement_pool"] = fmean(disagreement_of.values())
        figures["disagreement_chosen"] = fmean(disagreement_of[place] for place in chosen)
    return [candidates[place] for place in chosen], figures


def _figures(draws_of: list[list[Draw]], candidates: list[Row], wanted: int, tokenizer: Any) -> Row:
    """How many prompts and answers are kept, and what the draws were like."""
    draws = distinct = ended = empty = 0
    for of_prompt in draws_of:
        draws += len(of_prompt)
        distinct += len({collapse_whitespace(draw.text) for draw in of_prompt})
        for draw in of_prompt:
            ended += draw.ended
            empty += not draw.text
    complete = answers = tokens = 0
    for candidate in candidates:
        complete += len(candidate["answers"]) == wanted
        answers += len(candidate["answers"])
        for answer in candidate["answers"]:
            tokens += len(tokenizer.encode(answer, add_special_tokens=False))
    return {
        "prompts": len(draws_of),
        "prompts_kept": len(candidates),  # the others had fewer than two different answers
        "prompts_with_all_answers": complete,
        "answers": answers,
        "distinct_share": distinct / max(draws, 1),
        "ended_share": ended / max(draws, 1),
        "empty_share": empty / max(draws, 1),
        "mean_tokens": tokens / max(answers, 1),
    }


def _write_tasks(candidates: list[Row], params: Params, seed: int) -> None:
    """Write what annotation tools import, for every tool of sample.tasks."""
    for kind in params.tasks:
        for name, content in task_files(kind, candidates, params.answers, seed).items():
            if isinstance(content, list):
                write_json(CANDIDATES / name, content)
            else:
                with replaced(CANDIDATES / name) as temporary:
                    temporary.write_text(content)


if __name__ == "__main__":
    main(__file__, Params, run)
