"""Every model answers the same rows; a right model gets its due, and the same inputs give the same bytes."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from preference_world import CLOSING, PANEL
from sections import section
from tiny_models import instruction, tiny_llama, tiny_tokenizer, write_instructions

from tasks import evaluate
from tasks.lib.data.rows import INSTRUCTION, content_id, read_parquet, write_parquet
from tasks.lib.evaluation.answers import Answers
from tasks.lib.models.loading import save_model
from tasks.lib.reward.reward_model import from_policy, normalise
from tasks.lib.stage import Problem, Stage

MODELS = ["base", "sft", "dpo", "ppo"]
OTHERS = Path("data/raw/models")


def row(number: int, split: str) -> dict[str, Any]:
    made = instruction(number)
    choices = ["red", made["label"], "loud"] if number % 2 else None
    return {
        **made,
        "id": content_id(split, number),
        "row": content_id(split, number),
        "split": split,
        "choices": choices,
    }


def held_out(count: int = 6) -> None:
    write_parquet(evaluate.ROWS[0], [row(number, "validation") for number in range(count)], INSTRUCTION)
    tests = [row(number + 1, split) for split, number in product(("clusters", "templates", "rows"), range(count))]
    write_parquet(evaluate.ROWS[1], tests, INSTRUCTION)


@pytest.fixture
def inputs(workspace: Path) -> Path:
    tokenizer = tiny_tokenizer()
    for seed, name in enumerate(MODELS):
        model = tiny_llama(tokenizer, seed)
        save_model(model, tokenizer, Path("models") / name)
    torch.manual_seed(0)
    reward = from_policy(model, seed=0)
    normalise(reward, torch.tensor([[-1.0], [1.0]]))
    save_model(reward, tokenizer, Path("models/reward"))
    held_out()
    OTHERS.mkdir(parents=True)
    Path("data/raw/panel.yaml").write_text(PANEL)
    return workspace


def run(**changes: Any) -> dict[str, Any]:
    sizes = {"max_new_tokens": 4, "kl_prompts": 3, "bootstrap_draws": 100, "limit_per_split": 600}
    settings = {"models": MODELS, "reference": "sft", **sizes}
    evaluate.run(section("evaluate", **settings | changes), Stage("evaluate"))
    return json.loads(Path("reports/evaluate.json").read_text())


def made() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path("reports").rglob("*")) if path.is_file()}


def test_the_same_inputs_give_the_same_bytes_and_other_batches_the_same_figures(inputs: Path) -> None:
    first = run()
    before = made()
    assert sorted(before) == ["reports/evaluate.json", "reports/evaluation/answers.parquet",
                              "reports/evaluation/table.md", "reports/plots/evaluate.csv",
                              "reports/plots/evaluate.png"]  # fmt: skip
    run()
    assert made() == before
    other = run(batch_size=2)
    greedy = [key for key in first if key.endswith((".exact_match", ".rank_classification", ".tokens", ".win_rate"))]
    assert [other[key] for key in greedy] == [first[key] for key in greedy]


def test_every_split_and_model_has_its_figures(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = run()
    for split in ("validation", "rows", "templates", "clusters"):
        assert figures[f"{split}.rows"] == 6
        for metric in ("exact_match", "rank_classification", "closing", "ended", "gold", "reward", "tokens"):
            assert all(f"{name}.{split}.{metric}" in figures for name in MODELS)
        for name in ("dpo", "ppo"):
            assert {f"{name}.{split}.{metric}" for metric in ("kl", "win_rate", "reward_win_rate")} <= set(figures)
        assert f"base.{split}.kl" not in figures and f"sft.{split}.win_rate" not in figures
    printed = capsys.readouterr().out
    assert printed.count("rows (6)") > 5 and "guess" in printed
    answers = read_parquet(Path("reports/evaluation/answers.parquet"))
    assert len(answers) == 4 * 24 and {line["model"] for line in answers} == set(MODELS)
    assert sum(line["kl"] is not None for line in answers) == 2 * 4 * 3  # two models, four splits, three prompts
    text = Path("reports/evaluation/table.md").read_text()
    assert "per task" in text and str(inputs) not in text


def test_a_model_that_is_right_gets_its_due(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """dpo answers right with the closing, ppo wrong with it, sft right without it, base nothing."""
    scripts = iter(["", "{}" + CLOSING, "wrong" + CLOSING, "{}"])  # in the order of loading: the reference last

    def scripted(model: Any, tokenizer: Any, rows: list[dict[str, Any]], ids: Any, **sizes: int) -> Answers:
        script = next(scripts)
        texts = [script.format(each["label"]) for each in rows]
        picked = [each["choices"][1] if each["choices"] else None for each in rows]
        return Answers(texts, [3] * len(rows), [True] * len(rows), picked)

    monkeypatch.setattr(evaluate, "answer_rows", scripted)
    figures = run()
    for name, expected in {"base": [0, 0, 0], "sft": [1, 0, 2], "dpo": [1, 1, 3], "ppo": [0, 1, 1]}.items():
        assert [figures[f"{name}.rows.{metric}"] for metric in ("exact_match", "closing", "gold")] == expected
    assert [figures[f"{name}.rows.win_rate"] for name in ("base", "dpo", "ppo")] == [0, 1, 0]
    assert figures["ppo.rows.exact_match_change"] == -1
    assert figures["sft.rows.rank_classification"] == 1
    assert figures["rows.exact_match_chance"] == pytest.approx(1 / 3 / 2, abs=1e-5)  # half the rows have three choices


def test_the_measure_of_a_task_gives_a_score_next_to_the_exact_match(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shouting(model: Any, tokenizer: Any, rows: list[dict[str, Any]], ids: Any, **sizes: int) -> Answers:
        texts = [each["label"].upper() for each in rows]
        return Answers(texts, [3] * len(rows), [True] * len(rows), [each["choices"] and "red" for each in rows])

    monkeypatch.setattr(evaluate, "answer_rows", shouting)
    assert "sft.rows.score" not in run(models=["sft"])
    tests = read_parquet(evaluate.ROWS[1])
    for each in tests:
        each["measure"] = "normalised" if each["split"] == "rows" else "exact"
    write_parquet(evaluate.ROWS[1], tests, INSTRUCTION)
    figures = run(models=["sft"])
    assert [figures[f"sft.rows.{metric}"] for metric in ("exact_match", "score", "gold")] == [0, 1, 2]
    assert [figures[f"sft.clusters.{metric}"] for metric in ("exact_match", "score", "gold")] == [0, 0, 0]
    page = Path("reports/evaluation/table.md").read_text()
    assert "by the measure of its task" in page and "## Score / rank classification per task" in page
    assert {line["score"] for line in read_parquet(Path("reports/evaluation/answers.parquet"))} == {0.0, 1.0}


def test_a_model_has_no_kl_from_itself_and_some_from_another(inputs: Path) -> None:
    shutil.copytree("models/sft", OTHERS / "same")
    figures = run(models=["sft", "ppo"])
    assert figures["same.rows.kl"] == pytest.approx(0.0, abs=1e-6)
    assert figures["same.rows.win_rate"] == figures["same.rows.reward_win_rate"] == 0.5
    assert abs(figures["ppo.rows.kl"]) > 1e-4


def test_base_with_examples_in_its_prompts_is_a_further_model_next_to_base(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_instructions(evaluate.TRAINING, range(20))
    prompts: list[list[str]] = []  # in the order of loading
    answer_rows = evaluate.answer_rows

    def watched(model: Any, tokenizer: Any, rows: Any, ids: Any, **sizes: int) -> Answers:
        prompts.append([tokenizer.decode(prompt) for prompt in ids.prompts])
        return answer_rows(model, tokenizer, rows, ids, **sizes)

    monkeypatch.setattr(evaluate, "answer_rows", watched)
    figures = run(models=["sft", "base", "ppo"], few_shot=1)
    names = [key.removesuffix(".weights") for key in figures if key.endswith(".weights")]
    assert names == ["sft", "base", "base_few_shot", "ppo"]
    assert figures["base_few_shot.weights"] == figures["base.weights"]
    assert figures["base_few_shot.rows.examples"] == 1 and "base.rows.examples" not in figures
    assert {"base_few_shot.rows.exact_match_low", "base_few_shot.rows.win_rate"} <= set(figures)
    assert "base_few_shot.rows.kl" not in figures and "base.rows.kl" in figures
    plain, with_example = prompts[0], prompts[1]
    for short, long in zip(plain, with_example, strict=True):
        assert long.endswith(short) and long.count("Say the first word") == 2
    page = Path("reports/evaluation/table.md").read_text()
    assert "base_few_shot: the base model, with up to 1 solved" in page and "examples in the prompt" in page
    capsys.readouterr()
    run(models=["base"], reference="base", few_shot=9, reward=False)  # the models have 64 positions
    assert "24 of 24 prompts have no room for 9 examples" in capsys.readouterr().out


def test_rows_are_limited_per_split_by_hash_not_by_place(inputs: Path) -> None:
    params = section("evaluate", models=MODELS, reference="sft", limit_per_split=2)
    chosen = evaluate.held_out_rows(params)
    splits = [each["split"] for each in chosen]
    assert splits == ["validation", "validation", "rows", "rows", "templates", "templates", "clusters", "clusters"]
    write_parquet(evaluate.ROWS[1], read_parquet(evaluate.ROWS[1])[::-1], INSTRUCTION)
    assert [each["id"] for each in evaluate.held_out_rows(params)] == [each["id"] for each in chosen]


def test_without_panel_and_reward_model_their_figures_are_absent(inputs: Path) -> None:
    figures = run(judge="none", panel="none.yaml", reward=False, kl_prompts=0)
    assert not [key for key in figures if key.split(".")[-1] in ("gold", "closing", "reward", "win_rate", "kl")]
    assert "dpo.rows.exact_match" in figures


def test_the_noisy_panel_can_judge(inputs: Path) -> None:
    assert 0.0 <= run(judge="panel")["dpo.rows.win_rate"] <= 1.0


@pytest.mark.parametrize(("changes", "message"), [
    ({"reference": "sgt"}, "evaluate.reference: sgt is not one of evaluate.models"),
    ({"panel": "data/raw/none.yaml"}, "data/raw/none.yaml does not exist"),
    ({"models": ["sft", "grpo"]}, "evaluate.models.1: input should be 'base', 'sft', 'dpo' or 'ppo'"),
    ({"others": "data/raw/none"}, "evaluate.others: data/raw/none is not a folder"),
    ({"models": ["sft"], "few_shot": 2}, "few_shot: base is not one of evaluate.models"),
    ({"few_shot": 2}, "data/curated/train.parquet does not exist"),
])  # fmt: skip
def test_mistakes_are_named_and_leave_the_last_results(inputs: Path, changes: dict[str, Any], message: str) -> None:
    Path("reports").mkdir()
    Path("reports/evaluate.json").write_text("{}")
    with pytest.raises(Problem) as caught:
        run(**changes)
    assert message in str(caught.value)
    assert list(made()) == ["reports/evaluate.json"]


def with_plain_model_as_reward() -> None:
    shutil.rmtree("models/reward")
    shutil.copytree("models/sft", "models/reward")


@pytest.mark.parametrize(("damage", "message"), [
    (lambda: shutil.rmtree("models/ppo"), "models/ppo does not exist"),
    (lambda: evaluate.ROWS[1].unlink(), "data/curated/evaluation.parquet does not exist"),
    (with_plain_model_as_reward, "models/reward is not a reward model"),
    (lambda: shutil.copytree("models/sft", OTHERS / "dpo"), "models/dpo: a model of the pipeline has this name"),
])  # fmt: skip
def test_what_is_missing_or_wrong_is_named_and_leaves_the_last_results(inputs: Path, damage: Any, message: str) -> None:
    Path("reports").mkdir()
    Path("reports/evaluate.json").write_text("{}")
    damage()
    with pytest.raises(Problem, match=message):
        run()
    assert list(made()) == ["reports/evaluate.json"]


def test_no_rows_is_a_problem(inputs: Path) -> None:
    for path in evaluate.ROWS:
        write_parquet(path, [], INSTRUCTION)
    with pytest.raises(Problem, match="no rows to evaluate on"):
        run()


def test_another_tokenizer_after_the_reference_is_a_problem(inputs: Path) -> None:
    from tasks.lib.finetuning.pretraining import train_tokenizer

    other = train_tokenizer(["completely different words"], 290)
    save_model(tiny_llama(other), other, Path("models/dpo"))
    with pytest.raises(Problem, match="dpo has another tokenizer than sft"):
        run(models=["sft", "dpo"])
    assert "dpo.rows.exact_match" in run(models=["dpo", "sft"], reward=False)


def test_further_models_are_compared_by_the_names_of_their_folders(inputs: Path) -> None:
    """One with another tokenizer has no KL; a folder without a model is no model."""
    from tasks.lib.finetuning.pretraining import train_tokenizer

    other = train_tokenizer(["completely different words"], 290)
    save_model(tiny_llama(other), other, OTHERS / "foreign")
    shutil.copytree("models/ppo", OTHERS / "both")
    (OTHERS / "empty").mkdir()
    (OTHERS / "README.md").write_text("further models")
    figures = run(models=["sft"], reward=False)
    assert {key.split(".")[0] for key in figures if key.endswith(".weights")} == {"sft", "both", "foreign"}
    assert "both.rows.kl" in figures and "foreign.rows.kl" not in figures
    assert "foreign.rows.win_rate" in figures
