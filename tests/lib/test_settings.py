"""Settings that do not fit each other are refused before anything starts, in one line that names the key."""

from __future__ import annotations

from typing import Any

import pytest
from sections import section

from tasks.lib.stage import Problem

ADAMW = {"optimizer": "trainer"}
MISFITS: list[tuple[str, dict[str, Any], str]] = [
    ("render", {"shares": {"test": 0.3}}, "render.shares must sum to 1"),
    ("sft", {"method": "lora"}, "sft.optimizer: muon trains all weights; with sft.method lora use `trainer`"),
    (
        "sft",
        {"trainer": {"optim": "sgd"}},
        "sft.trainer.optim is for sft.optimizer: trainer; muon does not read it",
    ),
    (
        "sft",
        {**ADAMW, "method": "prompt", "trainer": {"weight_decay": 0.1}},
        "sft.trainer.weight_decay would shrink the whole vocabulary; set it to 0 with method prompt",
    ),
    (
        "sft",
        {**ADAMW, "method": "prefix", "packing": True},
        "sft.packing: a prefix is before a row, not before each sample; set it to false",
    ),
    (
        "sft",
        {"packing": True, "trainer": {"max_length": None}},
        "sft.packing needs sft.trainer.max_length, the tokens of a packed row",
    ),
    (
        "classify",
        {"method": "head", "lora": {"r": 4}},
        "classify.lora is set, but classify.method is head; set it to lora",
    ),
    ("reward", {"lora": {"r": 4}}, "reward.lora is set, but reward.method is full; set it to lora"),
    (
        "reward",
        {"training": {"tie_parameter": 1.0}},
        "reward.training.tie_parameter must be above 1 for rao_kupper (1 says that ties cannot happen)",
    ),
    ("dpo", {"thumbs": "label"}, "dpo.thumbs needs dpo.method: kto; dpo needs pairs"),
    (
        "dpo",
        {"method": "kto", "share_prompt": True},
        "dpo.share_prompt is for pairs; kto has none: set it to false",
    ),
    (
        "dpo",
        {"method": "kto", "trainer": {"precompute_ref_log_probs": True}},
        "dpo.trainer.precompute_ref_log_probs cannot be used with kto, whose batches are shuffled",
    ),
    (
        "dpo",
        {"share_prompt": True, "trainer": {"precompute_ref_log_probs": False}},
        "dpo.share_prompt needs dpo.trainer.precompute_ref_log_probs: true",
    ),
    (
        "ppo",
        {"trainer": {"num_generations": 4}},
        "ppo.trainer is for ppo.method: rloo or grpo; PPO's settings are keys of ppo",
    ),
    (
        "ppo",
        {"method": "rloo", "beta_target": 6.0},
        "ppo.beta_target is for ppo.method: ppo; set it to null",
    ),
    (
        "ppo",
        {"reward": "exact_match", "critic": "reward"},
        "ppo.critic: reward needs ppo.reward: model, not 'exact_match'",
    ),
    (
        "ppo",
        {"method": "grpo", "reward": "exact_match", "disagreement_weight": 0.5},
        "ppo.disagreement_weight needs ppo.reward: model, not 'exact_match'",
    ),
    (
        "evaluate",
        {"models": ["base", "dpo"]},
        "evaluate.reference: sft is not one of evaluate.models",
    ),
    (
        "choose",
        {"report_on": ["rows", "validation"]},
        "choose.report_on: validation is the split that selects; a result on it would flatter the chosen model",
    ),
]


@pytest.mark.parametrize(("stage", "changes", "message"), MISFITS, ids=[message for _, _, message in MISFITS])
def test_settings_that_do_not_fit_each_other_are_named(stage: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Problem) as found:
        section(stage, **changes)
    assert str(found.value) == f"params.yaml: {message}"


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("sft", {**ADAMW, "method": "prompt", "trainer": {"weight_decay": 0.0}}),
        ("sft", {**ADAMW, "method": "qlora"}),
        ("sft", {"packing": True, "trainer": {}}),
        ("dpo", {"method": "kto", "thumbs": "label"}),
        ("dpo", {"share_prompt": True, "trainer": {}}),
        ("ppo", {"method": "grpo", "reward": "exact_match", "critic": "reward", "trainer": {"num_generations": 4}}),
    ],
)
def test_settings_that_fit_each_other_are_taken(stage: str, changes: dict[str, Any]) -> None:
    section(stage, **changes)
