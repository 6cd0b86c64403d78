"""What a section `trainer` says holds on every device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trl import SFTConfig

from tasks.lib.stage import Stage
from tasks.lib.training.trainer_config import configured


def config(**given: Any) -> Any:
    return configured(SFTConfig, Stage("sft"), given)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_checkpointing_and_bf16_are_off_on_a_cpu_unless_they_are_set() -> None:
    assert not config().gradient_checkpointing and not config().bf16 and config().use_cpu
    asked = config(gradient_checkpointing=True, bf16=True)
    assert asked.gradient_checkpointing and asked.activation_checkpointing and asked.bf16 and asked.use_cpu
    assert config(activation_checkpointing=True).gradient_checkpointing
    assert not config(gradient_checkpointing=False).activation_checkpointing
