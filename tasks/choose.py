"""choose: the aligned policy is the better candidate, or the model it started from, by a stated rule.

Reads   reports/evaluate.json, models/{base,sft,dpo,ppo}, the models in evaluate.others
Writes  models/policy (a copy of the chosen folder), reports/choose.json
Run     python -m tasks.choose

A candidate must beat the model that stays with an interval above one half, keep its content and stay within a
KL budget; of those that do, the highest win rate is chosen. The rule reads the split `select_on` only. The best of
several looks better than it is on the rows that chose it, so results are reported on the splits `report_on`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tasks.lib.evaluation.choice import Candidate, Rule, choose_best
from tasks.lib.evaluation.compared_models import folder_of
from tasks.lib.evaluation.intervals import Interval
from tasks.lib.evaluation.measures import content_metric
from tasks.lib.models.model_folder import replaced_folder, weights_hash
from tasks.lib.settings.choose import Params
from tasks.lib.settings.evaluate import Params as EvaluateParams
from tasks.lib.stage import Problem, Stage, main, read_params

EVALUATION = Path("reports/evaluate.json")
OUT = Path("models/policy")
REPORTED = ("exact_match", "score", "win_rate", "reward_win_rate", "gold", "closing", "kl")
Report = dict[str, Any]


def run(params: Params, stage: Stage) -> None:
    # 1. What was evaluated must be what is there now.
    report = evaluation()
    evaluated, _ = read_params("evaluate", EvaluateParams)
    folders = {name: folder_of(name, evaluated.others) for name in (*params.candidates, params.stay)}
    for name, folder in folders.items():
        if figure(report, f"{name}.weights") != weights_hash(folder):
            raise Problem(f"{folder} is not the model that {EVALUATION} is about; run evaluate again")

    # 2. The rule.
    candidates = [candidate_of(report, name, params) for name in params.candidates]
    rule = Rule(params.max_content_loss, params.max_kl)
    choice = choose_best(candidates, rule, params.stay)
    chosen = choice.name or params.stay
    for line in choice.reasons:
        print(f"choose: {line}")

    # 3. The chosen folder, copied and read back.
    weights = figure(report, f"{chosen}.weights")
    copy_model(folders[chosen], OUT, weights)
    figures: Report = {"chosen": chosen, "reason": choice.reasons[0], "selected_on": params.select_on}
    for candidate, verdict in zip(candidates, choice.reasons[1:], strict=True):
        figures |= {
            f"{candidate.name}.passes": not rule.objections(candidate),
            f"{candidate.name}.verdict": verdict,
            f"{candidate.name}.win_rate": candidate.win_rate.mean,
            f"{candidate.name}.win_rate_low": candidate.win_rate.low,
            f"{candidate.name}.{candidate.content.replace(' ', '_')}_change": candidate.content_change,
            f"{candidate.name}.kl": candidate.kl,
        }
    figures |= results(report, chosen, params)
    stage.report({**figures, "weights": weights})


def evaluation() -> Report:
    """The flat figures of the stage evaluate."""
    try:
        report = json.loads(EVALUATION.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Problem(f"{EVALUATION} does not exist; run the stage evaluate") from None
    except ValueError as error:
        raise Problem(f"{EVALUATION}: not JSON ({error}); run evaluate again") from None
    if not isinstance(report, dict):
        raise Problem(f"{EVALUATION}: expected flat figures, found a {type(report).__name__}; run evaluate again")
    return report


def figure(report: Report, key: str) -> Any:
    """One figure; a missing one is a Problem that names it."""
    if key not in report:
        raise Problem(f"{EVALUATION}: the figure {key} is missing; have evaluate produce it, or change section choose")
    return report[key]


def candidate_of(report: Report, name: str, params: Params) -> Candidate:
    """A candidate's figures on the split that selects."""
    stem = f"{name}.{params.select_on}"
    win_rate = Interval(
        figure(report, f"{stem}.{params.judge}"),
        figure(report, f"{stem}.{params.judge}_low"),
        figure(report, f"{stem}.{params.judge}_high"),
    )
    metric = content_metric(report, f"{stem}.")
    change = figure(report, f"{stem}.{metric}") - figure(report, f"{params.stay}.{params.select_on}.{metric}")
    return Candidate(name, win_rate, change, figure(report, f"{stem}.kl"), metric.replace("_", " "))


def results(report: Report, chosen: str, params: Params) -> Report:
    """The chosen model's figures on the splits that did not choose it; and print them."""
    figures: Report = {}
    for split in params.report_on:
        shown: list[str] = []
        for metric in REPORTED:
            value = report.get(f"{chosen}.{split}.{metric}")
            if value is not None:
                figures[f"chosen.{split}.{metric}"] = value
                shown.append(f"{metric} {value:.3g}")
        print(f"choose: {chosen} on {split}: {'  '.join(shown) or 'not evaluated'}")
    return figures


def copy_model(source: Path, destination: Path, expected: str) -> None:
    """Copy a model folder whole or not at all. Problem if what arrives has other weights than `expected`."""
    with replaced_folder(destination) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        if weights_hash(folder) != expected:
            raise Problem(f"{source}: the copy's weights differ; check the disk and run choose again")


if __name__ == "__main__":
    main(__file__, Params, run)
