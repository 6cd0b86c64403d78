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
from typing import Any

import torch  # noqa: F401  so that main seeds it and limits its threads

from tasks.lib.annotation.tool_tasks import task_files
from tasks.lib.data.rows import CANDIDATE, content_id, read_parquet, write_parquet
from tasks.lib.importers.rankings import collapse_whitespace
from tasks.lib.models.chat import all_prompt_ids, answer_text, load_tokenizer
from tasks.lib.models.generation import generate
from tasks.lib.models.loading import load_policy
from tasks.lib.models.model_folder import weights_hash
from tasks.lib.reward.ensemble import disputes, load_ensemble
from tasks.lib.settings.sample import Params
from tasks.lib.stage import Problem, Stage, main, replaced, write_json

MODEL = Path("models/sft")
CANDIDATES = Path("data/candidates")
BATCHES_PER_CALL = 8  # rows of like length share a batch within a call; progress is shown between calls


def run(params: Params, stage: Stage) -> None:
    model, tokenizer = load_policy(MODEL), load_tokenizer(MODEL)
    rows = sorted(read_parquet(Path("data/curated/preference.parquet")), key=lambda row: row["id"])
    # ids are hashes: the first are a random choice that stays when rows are added
    ensemble = load_ensemble(params.reward) if params.choice == "disagreement" else None
    rows = rows[: params.prompts * (params.pool if ensemble else 1)]
    drawn = _draw(model, tokenizer, [row["messages"] for row in rows], params, stage)

    sampling = params.model_dump(include={"temperatures", "top_p", "max_new_tokens", "oversample"})
    shared = {
        "model": weights_hash(MODEL),
        "sampling": json.dumps({**sampling, "seed": stage.seed}, sort_keys=True),
    }
    candidates = []
    for row, draws in zip(rows, drawn, strict=True):
        answers = _different(draws, params.answers)
        if len(answers) >= 2:
            identity = content_id(row["messages"], answers)
            candidates.append(
                {
                    "id": identity,
                    "prompt": row["messages"],
                    "answers": answers,
                    "instruction": row["id"],
                    **shared,
                }
            )
    figures = _figures(drawn, candidates, params.answers, tokenizer)
    if ensemble:
        candidates, asked = _most_disputed(candidates, ensemble, params)
        figures |= asked
    if not candidates:
        raise Problem(
            f"sample: the model gave the same answer every time to each of {len(rows)} prompts; there is "
            f"nothing to rank: raise sample.temperatures (now {params.temperatures}) or sample.oversample"
        )
    write_parquet(CANDIDATES / "candidates.parquet", candidates, CANDIDATE)
    for kind in params.tasks:
        for name, content in task_files(kind, candidates, params.answers, stage.seed).items():
            if isinstance(content, list):
                write_json(CANDIDATES / name, content)
            else:
                with replaced(CANDIDATES / name) as temporary:
                    temporary.write_text(content)
    stage.report(figures)


def _draw(
    model: Any, tokenizer: Any, prompts: list[list[dict[str, str]]], params: Params, stage: Stage
) -> list[list[tuple[str, bool]]]:
    """Per prompt `answers * oversample` draws, in the order of the temperatures: (text, whether it ended)."""
    repeats, temperatures = params.answers * params.oversample, params.temperatures
    encoded = all_prompt_ids(tokenizer, prompts)
    texts: list[list[tuple[str, bool]]] = [[] for _ in prompts]
    prompts_per_call = max(1, params.batch_size * BATCHES_PER_CALL // repeats)
    for start in range(0, len(prompts), prompts_per_call):
        places = range(start, min(start + prompts_per_call, len(prompts)))
        for turn, temperature in enumerate(temperatures[:repeats]):
            draws = len(range(turn, repeats, len(temperatures)))
            answers = generate(
                model,
                [encoded[place] for place in places],
                eos_id=tokenizer.eos_token_id,
                pad_id=tokenizer.pad_token_id,
                max_new_tokens=params.max_new_tokens,
                temperature=temperature,
                top_p=params.top_p,
                batch_size=params.batch_size,
                seed=stage.seed_of(start, turn),
                draws=draws,
            )
            for i, ids in enumerate(answers):
                ended = ids[-1:] == [tokenizer.eos_token_id]
                texts[places[i // draws]].append((answer_text(tokenizer, ids), ended))
        stage.progress(places[-1] + 1, len(prompts))
    return texts


def _different(draws: list[tuple[str, bool]], wanted: int) -> list[str]:
    """The first `wanted` answers that differ in more than white space; those that ended come first."""
    seen: dict[str, str] = {}
    for text, _ in sorted(draws, key=lambda draw: not draw[1]):
        if text and _is_readable(text):
            seen.setdefault(collapse_whitespace(text), text)
    return list(seen.values())[:wanted]


def _is_readable(text: str) -> bool:
    """False for control characters and broken UTF-8: people cannot rank it, and NUL breaks the export."""
    return "\ufffd" not in text and all(c.isprintable() or c in "\n\t" for c in text)


def _most_disputed(
    candidates: list[dict[str, Any]], ensemble: tuple[Any, Any], params: Params
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The candidates that the heads of a reward ensemble disagree about most, in their order, and figures."""
    apart = dict(disputes(*ensemble, candidates, batch_size=params.batch_size))
    chosen = sorted(apart, key=lambda place: (-apart[place], candidates[place]["id"]))[: params.prompts]
    figures = {
        "pool": len(candidates),
        "disagreement_pool": fmean(apart.values()) if apart else 0.0,
        "disagreement_chosen": fmean(apart[place] for place in chosen) if chosen else 0.0,
    }
    return [candidates[place] for place in sorted(chosen)], figures


def _figures(
    drawn: list[list[tuple[str, bool]]], candidates: list[dict[str, Any]], wanted: int, tokenizer: Any
) -> dict[str, Any]:
    draws = [draw for of_prompt in drawn for draw in of_prompt]
    kept = [answer for candidate in candidates for answer in candidate["answers"]]
    return {
        "prompts": len(drawn),
        "prompts_kept": len(candidates),  # the others had fewer than two different answers
        "prompts_with_all_answers": sum(len(c["answers"]) == wanted for c in candidates),
        "answers": len(kept),
        "distinct_share": sum(len({collapse_whitespace(text) for text, _ in of_prompt}) for of_prompt in drawn)
        / max(len(draws), 1),
        "ended_share": sum(ended for _, ended in draws) / max(len(draws), 1),
        "empty_share": sum(not text for text, _ in draws) / max(len(draws), 1),
        "mean_tokens": sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in kept) / max(len(kept), 1),
    }


if __name__ == "__main__":
    main(__file__, Params, run)
