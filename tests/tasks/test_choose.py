"""choose copies the better candidate, or the model that stays; and only what was evaluated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sections import section
from tiny_models import write_model

from tasks import choose
from tasks.lib.models.loading import load_policy
from tasks.lib.models.model_folder import weights_hash
from tasks.lib.stage import Problem, Stage, write_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def inputs(workspace: Path) -> dict[str, Any]:
    """Three models, and a report in which dpo wins on validation and ppo only on the test rows."""
    figures: dict[str, Any] = {"rows.rows": 600}
    for seed, name in enumerate(("sft", "dpo", "ppo")):
        write_model(Path("models") / name, seed)
        figures[f"{name}.weights"] = weights_hash(Path("models") / name)
    for split, wins in {"validation": (0.8, 0.7), "rows": (0.7, 0.9)}.items():
        figures[f"sft.{split}.exact_match"] = 0.8
        for name, win in zip(("dpo", "ppo"), wins, strict=True):
            figures |= {f"{name}.{split}.{key}": value for key, value in {
                "exact_match": 0.79, "kl": 3.0, "gold": 2.0, "win_rate": win, "win_rate_low": win - 0.05,
                "win_rate_high": win + 0.05, "reward_win_rate": 1 - win / 2, "reward_win_rate_low": 0.51,
                "reward_win_rate_high": 0.99}.items()}  # fmt: skip
    write_json(Path("reports/evaluate.json"), figures)
    shutil.copy(ROOT / "params.yaml", "params.yaml")  # choose reads evaluate.others
    return figures


def run(**changes: Any) -> dict[str, Any]:
    settings = {"candidates": ["dpo", "ppo"], "stay": "sft", "report_on": ["rows"], "max_kl": 15.0}
    choose.run(section("choose", **settings | changes), Stage("choose"))
    return json.loads(Path("reports/choose.json").read_text())


def test_the_selection_split_decides_and_the_other_is_reported(
    inputs: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    report = run()
    assert report["chosen"] == "dpo" and report["selected_on"] == "validation"
    assert report["chosen.rows.win_rate"] == 0.7  # not the 0.8 that chose it
    assert "chosen.validation.win_rate" not in report
    assert report["dpo.passes"] and report["ppo.passes"]
    printed = capsys.readouterr().out
    assert "choose: dpo is chosen: the highest win rate of those that pass" in printed
    assert "choose: dpo on rows: exact_match 0.79  win_rate 0.7" in printed


def test_the_policy_is_a_working_copy_with_the_evaluated_weights(inputs: dict[str, Any]) -> None:
    run()
    files = {path.name: path.read_bytes() for path in Path("models/policy").iterdir()}
    assert files == {path.name: path.read_bytes() for path in Path("models/dpo").iterdir()}
    assert weights_hash("models/policy") == inputs["dpo.weights"]
    load_policy("models/policy")
    before = Path("reports/choose.json").read_bytes()
    run()
    assert Path("reports/choose.json").read_bytes() == before


def test_sft_stays_when_none_is_better(inputs: dict[str, Any]) -> None:
    report = run(max_kl=1.0)
    assert report["chosen"] == "sft" and "no candidate is better" in report["reason"]
    assert "KL 3.0 exceeds the budget" in report["dpo.verdict"] and not report["dpo.passes"]
    assert weights_hash("models/policy") == inputs["sft.weights"]


def test_a_candidate_that_lost_content_is_out(inputs: dict[str, Any]) -> None:
    inputs["dpo.validation.exact_match"] = 0.7
    write_json(Path("reports/evaluate.json"), inputs)
    assert run()["chosen"] == "ppo"


def test_the_reward_model_can_judge_where_no_judge_is(inputs: dict[str, Any]) -> None:
    assert run(judge="reward_win_rate")["chosen"] == "ppo"


def test_a_model_that_changed_after_the_evaluation_is_refused(inputs: dict[str, Any]) -> None:
    run()
    before = weights_hash("models/policy")
    write_model(Path("models/dpo"), seed=9)
    with pytest.raises(Problem, match=r"models/dpo is not the model .* run evaluate again"):
        run()
    assert weights_hash("models/policy") == before


def test_selecting_and_reporting_on_the_same_rows_is_refused(inputs: dict[str, Any]) -> None:
    with pytest.raises(Problem, match=r"choose.report_on: validation is the split that selects"):
        run(report_on=["rows", "validation"])


@pytest.mark.parametrize(("changes", "message"), [
    ({"select_on": "valid"}, "dpo.valid.win_rate is missing"),
    ({"candidates": ["grpo"]}, "grpo.weights is missing"),
    ({"stay": "base"}, "base.weights is missing"),
    ({"stay": "base_few_shot"}, "base_few_shot is the model base with another prompt"),
])  # fmt: skip
def test_what_the_evaluation_does_not_know_is_named(
    inputs: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(Problem) as caught:
        run(**changes)
    assert message in str(caught.value)
    assert not Path("models/policy").exists()


def test_a_candidate_can_be_one_of_the_further_models(inputs: dict[str, Any]) -> None:
    Path("data/raw/models").mkdir(parents=True)
    Path("models/dpo").rename("data/raw/models/both")
    known = {key.replace("dpo.", "both."): value for key, value in inputs.items()}
    write_json(Path("reports/evaluate.json"), known)
    assert run(candidates=["ppo", "both"])["chosen"] == "both"
    assert weights_hash("models/policy") == inputs["dpo.weights"]


def test_where_there_is_a_score_the_score_is_the_content(inputs: dict[str, Any]) -> None:
    scores = {f"{name}.validation.score": value for name, value in (("sft", 0.8), ("dpo", 0.6), ("ppo", 0.8))}
    write_json(Path("reports/evaluate.json"), inputs | scores)
    report = run()
    assert report["chosen"] == "ppo" and report["dpo.score_change"] == pytest.approx(-0.2)
    assert "it loses 0.200 of score, more than the 0.05 allowed" in report["dpo.verdict"]
    assert "dpo.exact_match_change" not in report


def test_a_model_that_is_not_there_any_more_is_named(inputs: dict[str, Any]) -> None:
    shutil.rmtree("models/sft")
    with pytest.raises(Problem, match="models/sft does not exist"):
        run()
    assert not Path("models/policy").exists()


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_report_is_a_problem(inputs: dict[str, Any], content: str) -> None:
    Path("reports/evaluate.json").write_text(content)
    with pytest.raises(Problem, match="run evaluate again"):
        run()


def test_a_flipped_bit_is_found(inputs: dict[str, Any]) -> None:
    path = Path("models/dpo/model.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(Problem, match="is not the model"):
        run()
