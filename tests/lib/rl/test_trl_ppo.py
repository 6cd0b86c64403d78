"""PPO against an independent oracle: what TRL 1.12's PPOTrainer computed on the same samples.

`trl_ppo_figures.json` was made by benchmarks/trl_ppo.py (its docstring says how) from `trl_ppo_case.json`: answers of
four columns whose EOS (1) comes third, second, second and again, first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import ppo_step
from tasks.lib.rl.losses import whiten

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def case() -> dict[str, Any]:
    return json.loads((HERE / "trl_ppo_case.json").read_text())


@pytest.fixture(scope="module")
def trl() -> dict[str, Any]:
    return json.loads((HERE / "trl_ppo_figures.json").read_text())


@pytest.mark.parametrize("what", ["advantages", "policy loss", "value loss", "score", "kl", "clip share"])
def test_an_iteration_computes_what_trl_computes(case: dict[str, Any], trl: dict[str, Any], what: str) -> None:
    """Masks, KL, token rewards and GAE by the advantages; clipping by the losses of three epochs."""
    assert ppo_step.compare(case, trl)[what] < 1e-5


def test_three_epochs_lead_to_the_weights_of_trl(case: dict[str, Any], trl: dict[str, Any]) -> None:
    ours, theirs = ppo_step.weights_after(case, trl)
    assert ours == pytest.approx(theirs, abs=1e-3)
    before = ppo_step.sizes(ppo_step.four_models(case["shape"])["policy"])
    assert max(abs(before[name] - ours[name]) for name in ours) > 0.05


def test_whitening_is_trl_s_up_to_its_unbiased_variance(trl: dict[str, Any]) -> None:
    """TRL divides by n - 1 where LMHP and ours divide by n: a factor sqrt((n - 1) / n) for all values."""
    values, mask, result = (torch.tensor(trl["advantages"][key]) for key in ("values", "mask", "result"))
    n = int(mask.sum())
    expected = result.where(mask, 0) * (n / (n - 1)) ** 0.5
    torch.testing.assert_close(whiten(values, mask), expected, rtol=0, atol=1e-5)


def test_the_states_with_a_value_are_those_of_trl(case: dict[str, Any], trl: dict[str, Any]) -> None:
    """padding_mask: index > position of the EOS."""
    is_action, _ = ppo_step.ppo.masks([3, 2, 2, 1], "after_eos")
    theirs = torch.tensor(trl["advantages"]["mask"])
    assert torch.equal(is_action[trl["order"]], theirs[:, :3])
