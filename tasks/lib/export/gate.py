"""The gate of a release: every format against the full-precision model, on the same held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tasks.lib.evaluation.measures import content_metric
from tasks.lib.evaluation.panel import Panel
from tasks.lib.evaluation.scores import answer_figures
from tasks.lib.export.distillation import Ids, logits_on, passes_of
from tasks.lib.export.formats import FORMATS
from tasks.lib.models.chat import all_prompt_ids, answer_text, load_tokenizer
from tasks.lib.models.generation import generate
from tasks.lib.models.loading import load_policy
from tasks.lib.settings.release import Params
from tasks.lib.stage import Problem, Stage

Row = dict[str, Any]


@dataclass(frozen=True)
class Reference:
    """The full-precision model and its greedy answers to N held-out rows: what every format is compared with."""

    model: PreTrainedModel
    tokenizer: Any
    panel: Panel | None
    rows: Sequence[Row]  # N
    prompts: list[Ids]  # N
    answers: list[Ids]  # N, EOS included

    def figures_of(self, rows: Sequence[Row], answers: Sequence[Ids]) -> dict[str, float]:
        """`answer_figures` of the answers to some rows."""
        texts = [answer_text(self.tokenizer, answer) for answer in answers]
        return answer_figures(rows, texts, self.panel)


def answered(params: Params, rows: Sequence[Row], panel: Panel | None) -> Reference:
    """Load the full-precision model and let it answer the rows."""
    tokenizer, model = load_tokenizer(params.model), load_policy(params.model, dtype=torch.float32, on="cpu")
    prompts = all_prompt_ids(tokenizer, [row["messages"] for row in rows])
    answers = _greedy_answers(model, tokenizer, prompts, params)
    return Reference(model, tokenizer, panel, rows, prompts, answers)


def quality_by_split(reference: Reference) -> dict[str, dict[str, float]]:
    """Split -> how many rows it has, and the figures of the full-precision model's answers to them."""
    rows_of: dict[str, list[Row]] = {}
    answers_of: dict[str, list[Ids]] = {}
    for row, answer in zip(reference.rows, reference.answers, strict=True):
        rows_of.setdefault(row["split"], []).append(row)
        answers_of.setdefault(row["split"], []).append(answer)
    quality = {}
    for split in sorted(rows_of):
        figures = reference.figures_of(rows_of[split], answers_of[split])
        quality[split] = {"rows": len(rows_of[split]), **figures}
    return quality


def pass_gate(
    names: Sequence[str], export: Path, reference: Reference, params: Params, stage: Stage
) -> dict[str, dict[str, float]]:
    """Format -> its figures. Raises Problem that names every format that fails: beyond which bounds, or what no bound
    allows, such as another tokenizer or logits that are not finite."""
    figures: dict[str, dict[str, float]] = {}
    beyond, broken = [], []
    for done, name in enumerate(names, start=1):
        try:
            figures[name] = _compared(name, export / name, reference, params)
            reasons = params.bounds[name].broken_by(figures[name])
            if reasons:
                beyond.append(f"{name}: {', '.join(reasons)}")
        except Problem as problem:
            broken.append(f"{name}: {problem}")
        stage.progress(done, len(names), **figures.get(name, {}))
    failures = []
    if beyond:
        failures.append(f"beyond the bounds are {'; '.join(beyond)}; loosen release.bounds, "
                        "or leave the format out of quantize.formats")  # fmt: skip
    if broken:
        failures.append(f"no bound allows {'; '.join(broken)}; run quantize again, "
                        "or leave the format out of quantize.formats")  # fmt: skip
    if failures:
        raise Problem(f"not released: {'; '.join(failures)}")
    return figures


def _compared(name: str, folder: Path, reference: Reference, params: Params) -> dict[str, float]:
    """One format: its logits, its exact match or score, the loss. Raises Problem for what no bound allows."""
    model = FORMATS[name].read(folder)
    conversations = [row["messages"] for row in reference.rows]
    for line in FORMATS[name].check(folder, model, reference.tokenizer, conversations):
        print(f"release: {name}: {line}", flush=True)
    figures = logit_differences(reference.model, model, reference.prompts, reference.answers, params.batch_size)
    answers = _greedy_answers(model, reference.tokenizer, reference.prompts, params)
    expected = reference.figures_of(reference.rows, reference.answers)
    actual = reference.figures_of(reference.rows, answers)
    metric = content_metric(actual)
    return figures | {metric: actual[metric], f"{metric}_drop": max(expected[metric] - actual[metric], 0.0)}


@torch.no_grad()
def logit_differences(
    reference: PreTrainedModel,
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    answers: Sequence[Ids],
    batch_size: int,
) -> dict[str, float]:
    """Differences over all tokens of the given answers (those of the reference).

    max and mean |logit difference|; mean KL(reference || model) in nats per token; the fraction of tokens whose
    most probable successor is the same. Raises Problem when a logit of `model` is not finite; the reference's are,
    for it gave the answers.
    """
    largest, total, divergence = 0.0, 0.0, 0.0
    agreeing, tokens, logits = 0, 0, 0
    for start in range(0, len(prompts), batch_size):
        batch = [*range(start, min(start + batch_size, len(prompts)))]
        for places in passes_of(reference, [prompts[row] for row in batch], [answers[row] for row in batch]):
            rows = [batch[place] for place in places]
            of_rows = [prompts[row] for row in rows], [answers[row] for row in rows]
            expected, is_answer, _ = logits_on(reference, *of_rows)
            actual, _, _ = logits_on(model, *of_rows)
            expected, actual = expected[is_answer].double(), actual[is_answer].double()  # (tokens of the pass, V)
            if not bool(torch.isfinite(actual).all()):
                raise Problem("logits that are not finite")
            difference = (expected - actual).abs()
            expected_logprobs, actual_logprobs = expected.log_softmax(-1), actual.log_softmax(-1)
            largest = max(largest, difference.max().item())
            total += difference.sum().item()
            logits += difference.numel()
            divergence += (expected_logprobs.exp() * (expected_logprobs - actual_logprobs)).sum().item()
            agreeing += int((expected.argmax(-1) == actual.argmax(-1)).sum())
            tokens += len(expected)
    return {
        "max_logit_error": largest,
        "mean_logit_error": total / max(logits, 1),
        "kl": max(divergence, 0.0) / max(tokens, 1),  # rounding may push the sum below 0
        "agreement": agreeing / max(tokens, 1),
    }


def _greedy_answers(model: PreTrainedModel, tokenizer: Any, prompts: list[Ids], params: Params) -> list[Ids]:
    return generate(
        model,
        prompts,
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id or 0,
        max_new_tokens=params.max_new_tokens,
        temperature=0.0,
        batch_size=params.batch_size,
        seed=0,
    )
