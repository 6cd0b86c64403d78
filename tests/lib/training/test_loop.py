"""The common loop stops before harm, and its schedule rises and falls as it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tasks.lib.stage import Problem
from tasks.lib.training.checkpoints import Checkpoint
from tasks.lib.training.loop import train_steps, warmup_then_cosine


def train(weight: nn.Linear, folder: Path, loss_of: Callable[[int], Tensor]) -> list[dict[str, float]]:
    """Four steps at rates of 0.1, 0.2, 0.3 and 0.4, gradients of at most 1, a checkpoint after the second step."""

    def backward(step: int) -> tuple[Tensor, dict[str, float]]:
        loss = loss_of(step)
        loss.backward()
        return loss.detach(), {"weight": weight.weight.item()}

    return train_steps(
        "base",
        weight,
        torch.optim.SGD(weight.parameters(), lr=1.0),
        backward,
        steps=4,
        rate_at=lambda step: 0.1 * (step + 1),
        max_grad_norm=1.0,
        checkpoint=Checkpoint(folder, {}),
        save_every=2,
        progress=lambda *_, **__: None,
        advice=lambda step: f"look at row {step}",
    )


@pytest.fixture
def one() -> nn.Linear:
    """A model of one weight, which is 1."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    return model


def test_the_gradient_is_clipped_and_the_rate_is_that_of_the_step(one: nn.Linear, tmp_path: Path) -> None:
    """The gradient 2w of w^2 is clipped to 1 in the first three steps; in the last it is 0.8."""
    log = train(one, tmp_path, lambda step: one.weight.square().sum())
    assert [row["weight"] for row in log] == pytest.approx([1.0, 0.9, 0.7, 0.4])
    assert one.weight.item() == pytest.approx(0.4 - 0.4 * 0.8)
    assert [row["step"] for row in log] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (lambda weight: weight * torch.nan, "base: the loss of step 3 is nan, no step was taken; look at row 2"),
        (lambda weight: weight * torch.inf, "base: the loss of step 3 is inf, no step was taken; look at row 2"),
        (lambda weight: (0 * weight).sqrt(), "base: the gradient's norm of step 3 is nan, no step was taken"),
    ],
)
def test_what_is_not_finite_does_not_reach_the_weights(
    one: nn.Linear, tmp_path: Path, spoilt: Callable[[Tensor], Tensor], message: str
) -> None:
    with pytest.raises(Problem, match=message):
        train(one, tmp_path, lambda step: spoilt(one.weight.sum()) if step == 2 else one.weight.square().sum())
    assert one.weight.item() == pytest.approx(0.7)
    saved = Checkpoint(tmp_path, {}).load()
    assert saved is not None and saved[0] == 2


def test_a_checkpoint_of_other_weights_is_discarded_with_a_line(
    one: nn.Linear, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As earlier code wrote it: without a prefix, or with another shape."""
    for tensors in ({"weight": torch.zeros(1, 1)}, {"model.weight": torch.zeros(2, 1)}):
        Checkpoint(tmp_path, {}).save(2, tensors, [])
        nn.init.ones_(one.weight)
        log = train(one, tmp_path, lambda step: one.weight.square().sum())
        assert [row["step"] for row in log] == [1, 2, 3, 4]
        said = capsys.readouterr().out
        assert "the checkpoint is discarded and the run starts from the beginning: it holds other weights" in said


def test_the_rate_rises_in_a_line_and_falls_towards_a_tenth() -> None:
    rates = [warmup_then_cosine(step, 12, 2) for step in range(12)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[7] == pytest.approx(0.55)
    assert rates[1:] == sorted(rates[1:], reverse=True) and 0.1 < rates[-1] < 0.13
    assert warmup_then_cosine(0, 12, 0) == 1.0


def test_a_rate_that_falls_at_once_has_its_peak_at_one_step() -> None:
    """That of the reward model."""
    rates = [warmup_then_cosine(step, 20, 2, floor=0.0, falls_at_once=True) for step in range(20)]
    assert rates[:2] == [0.5, 1.0] and rates == [*rates[:2], *sorted(rates[2:], reverse=True)]
    assert rates[2] < 1 and 0 < rates[-1] < 0.02
