"""Settings of low-rank updates mean the same for every stage."""

from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig

from tasks.lib.finetuning.lora import lora_config
from tasks.lib.stage import Problem


def test_all_linear_layers_are_adapted_if_nothing_else_is_said() -> None:
    config = lora_config("dpo.lora", {"r": 4}, task_type="CAUSAL_LM")
    assert (config.r, config.target_modules, config.task_type) == (4, "all-linear", "CAUSAL_LM")
    assert (config.lora_alpha, config.lora_dropout) == (LoraConfig().lora_alpha, 0.0)
    assert lora_config("dpo.lora", {"target_modules": ["q_proj"]}).target_modules == {"q_proj"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": 1}, r"ppo\.lora\.alpha is not a key of LoraConfig; did you mean lora_alpha\?"),
        ({"layers_pattern": "h"}, r"params\.yaml: ppo\.lora: .*layers_pattern"),
        ({"lora_bias": True}, r"ppo\.lora\.lora_bias cannot be set here: the merged weights have no place for its"),
        (
            {"layer_replication": [[0, 2], [1, 2]]},
            r"ppo\.lora\.layer_replication cannot be set here: the trained model",
        ),
        (
            {"init_lora_weights": "corda"},
            r"ppo\.lora\.init_lora_weights: corda needs data beforehand .* choose true, g",
        ),
        ({"init_lora_weights": False}, r"ppo\.lora\.init_lora_weights: False needs data beforehand or begins with ano"),
        ({"r": 0}, r"params\.yaml: ppo\.lora\.r: expected a whole number of at least 1, found 0"),
    ],
)
def test_a_wrong_key_or_value_is_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(Problem, match=message):
        lora_config("ppo.lora", given)


@pytest.mark.parametrize("given", [{"init_lora_weights": "pissa_niter_4"}, {"bias": "all"}, {"bias": "lora_only"}])
def test_what_changes_the_base_is_refused_where_a_reference_reads_it(given: dict[str, Any]) -> None:
    lora_config("sft.adapter", given)
    with pytest.raises(Problem, match=r"dpo\.lora\.\w+: .*, but the reference is it"):
        lora_config("dpo.lora", given, needs_base="the reference is it")
