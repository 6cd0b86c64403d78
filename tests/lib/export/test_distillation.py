"""A student starts as the teacher's layers, and learns from its most probable tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sections import section
from tiny_models import tiny_llama, tiny_tokenizer
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from tasks.lib.export.distillation import (
    Targets,
    chosen_layers,
    divergence,
    kd_loss,
    off_policy_loss,
    on_policy_loss,
    passes_of,
    sparse_kd_loss,
    student_of,
    teacher_targets,
)
from tasks.lib.export.student_training import train_student
from tasks.lib.models import pass_size
from tasks.lib.models.generation import generate
from tasks.lib.stage import Problem, Stage
from tasks.lib.training.checkpoints import Checkpoint

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]


@pytest.fixture(scope="module")
def teacher() -> Any:
    return tiny_llama(tiny_tokenizer()).eval()


def targets_of(teacher: Any, top_k: int, temperature: float = 1.0) -> Targets:
    return teacher_targets(
        teacher, PROMPTS, top_k=top_k, temperature=temperature, eos_id=1, pad_id=0, max_new_tokens=6, batch_size=2
    )


def test_every_second_layer_or_the_given_ones() -> None:
    assert chosen_layers(2, 4) == [0, 2]
    assert chosen_layers(2, 5) == [0, 2, 4]
    assert chosen_layers([1, 3], 4) == [1, 3]
    for wrong in ([4], [-1], [], [2, 0], [1, 1]):
        with pytest.raises(Problem, match="rising layer numbers from 0 to 3"):
            chosen_layers(wrong, 4)


def test_a_student_of_all_layers_is_the_teacher_and_one_of_fewer_generates(teacher: Any) -> None:
    ids = torch.arange(10)[None]
    same = student_of(teacher, [0, 1])
    assert torch.equal(same(ids).logits, teacher(ids).logits)
    student = student_of(teacher, [1])
    assert torch.equal(student.model.layers[0].mlp.up_proj.weight, teacher.model.layers[1].mlp.up_proj.weight)
    assert student.config.num_hidden_layers == 1 and teacher.config.num_hidden_layers == 2
    with_cache = generate(student, PROMPTS, eos_id=1, pad_id=0, max_new_tokens=5, temperature=0, batch_size=3, seed=0)
    expected = []
    for prompt in PROMPTS:
        row = list(prompt)
        while len(row) < len(prompt) + 5 and row[-1] != 1:
            row.append(int(student(torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
        expected.append(row[len(prompt) :])
    assert with_cache == expected  # each layer knows its place in the KV cache


def test_gpt2_has_layers_by_another_name() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=4, n_head=2, n_embd=8, vocab_size=20, n_positions=16)).eval()
    student = student_of(model, [0, 2])
    assert student.config.n_layer == 2
    assert torch.equal(student.transformer.h[1].mlp.c_fc.weight, model.transformer.h[2].mlp.c_fc.weight)


def test_with_the_whole_vocabulary_kept_the_teacher_teaches_itself_nothing(teacher: Any) -> None:
    targets = targets_of(teacher, 300, 2.0)
    assert off_policy_loss(teacher, PROMPTS, targets, [0, 1, 2], 1.0, 2.0).item() == pytest.approx(0, abs=1e-5)
    assert divergence(teacher, teacher, PROMPTS, targets.answers, 2) == pytest.approx(0, abs=1e-6)
    assert on_policy_loss(teacher, teacher, PROMPTS, targets.answers, 1.0).item() == pytest.approx(0, abs=1e-6)


def test_the_kept_probabilities_are_those_of_the_whole_vocabulary(teacher: Any) -> None:
    targets = targets_of(teacher, 2, 3.0)
    answer = targets.answers[1]
    logits = teacher(torch.tensor([[*PROMPTS[1], *answer]])).logits[0, len(PROMPTS[1]) - 1 : -1]
    best = (logits / 3).log_softmax(-1).topk(2)
    logprobs, ids = targets.of_rows([1])
    assert torch.allclose(logprobs, best.values, atol=1e-5) and torch.equal(ids.long(), best.indices)


def test_tokens_that_are_not_kept_count_as_one() -> None:
    """Teacher 0.5 0.3 0.1 0.1, of which two are kept; student 0.4 0.4 0.1 0.1: 0.5 ln 5/4 + 0.3 ln 3/4 + 0.2 ln 1."""
    student = torch.tensor([[0.4, 0.4, 0.1, 0.1]]).log()
    kept, ids, label = torch.tensor([[0.5, 0.3]]).log(), torch.tensor([[0, 1]]), torch.tensor([0])
    loss = sparse_kd_loss(student, kept, ids, label, alpha=1.0, temperature=1.0)
    assert loss.item() == pytest.approx(0.5 * math.log(1.25) + 0.3 * math.log(0.75), abs=1e-6)
    with_labels = sparse_kd_loss(student, kept, ids, label, alpha=0.5, temperature=1.0)
    assert with_labels.item() == pytest.approx(0.5 * loss.item() - 0.5 * math.log(0.4), abs=1e-6)


def test_with_all_tokens_kept_the_loss_and_its_gradient_are_those_of_whole_distributions() -> None:
    torch.manual_seed(0)
    teacher, labels, mask = torch.randn(1, 5, 9), torch.randint(9, (1, 5)), torch.ones(1, 5, dtype=torch.bool)
    best = (teacher[0] / 2).log_softmax(-1).topk(9)
    dense, sparse = (torch.zeros(1, 5, 9).requires_grad_() for _ in range(2))
    expected = kd_loss(dense, teacher, labels, mask, alpha=0.7, temperature=2.0)
    found = sparse_kd_loss(sparse[0], best.values, best.indices, labels[0], alpha=0.7, temperature=2.0)
    expected.backward()
    found.backward()
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(sparse.grad, dense.grad, atol=1e-5, rtol=0)


def test_the_losses_of_the_passes_of_a_step_add_up_to_its_own(
    teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets, logs = targets_of(teacher, 4), []
    how = section("distill", training={"epochs": 2, "batch_size": 3, "on_policy": 0.5}).training
    for memory in (1e9, 1.0):
        monkeypatch.setattr(pass_size, "TRAINING", memory)
        assert len(passes_of(teacher, PROMPTS, targets.answers)) == (1 if memory > 1 else 3)
        log = train_student(
            student_of(teacher, [0]), teacher, PROMPTS, targets, how, Stage("distill"),
            Checkpoint(tmp_path / str(memory), {}), eos_id=1, pad_id=0, max_new_tokens=6,
        )  # fmt: skip
        logs.append([row["loss"] for row in log])
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)


def test_targets_survive_a_checkpoint(teacher: Any) -> None:
    targets = targets_of(teacher, 4)
    back = Targets.of(targets.tensors())
    assert back.answers == targets.answers and torch.equal(back.logprobs, targets.logprobs)


def test_the_size_of_the_gradient_does_not_change_with_a_high_temperature(teacher: Any) -> None:
    norms = []
    for temperature in (20.0, 80.0):
        targets = targets_of(teacher, 300, temperature)
        student = student_of(teacher, [1])
        for weight in student.parameters():
            weight.data += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        off_policy_loss(student, PROMPTS, targets, [0, 1, 2], 1.0, temperature).backward()
        norms.append(sum(float(weight.grad.pow(2).sum()) for weight in student.parameters()) ** 0.5)
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_distillation_without_a_gap_is_cross_entropy_only() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    expected = F.cross_entropy(logits[mask], labels[mask])
    torch.testing.assert_close(kd_loss(logits, logits, labels, mask, alpha=0.0), expected)
    torch.testing.assert_close(kd_loss(logits, logits, labels, mask, alpha=0.3), 0.7 * expected)
    labels[~mask] = -100  # ignored there
    assert kd_loss(logits, logits + 1, labels, mask, alpha=1.0).abs() < 1e-6  # a shift is no difference


def test_the_gradient_of_distillation_does_not_shrink_with_temperature() -> None:
    """Hinton's T^2: at high T the gradient tends to (z - v) / V per logit, whatever T."""
    torch.manual_seed(0)
    teacher = torch.randn(1, 1, 8, dtype=torch.double)
    norms = []
    for temperature in (50.0, 500.0):
        student = torch.zeros(1, 1, 8, dtype=torch.double).requires_grad_()
        label, mask = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
        kd_loss(student, teacher, label, mask, alpha=1.0, temperature=temperature).backward()
        assert student.grad is not None
        norms.append(student.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.05)
    assert norms[1] == pytest.approx(((teacher - teacher.mean()) / 8).norm().item(), rel=0.05)


def test_distillation_of_no_position_is_zero_not_nan() -> None:
    logits, mask = torch.randn(1, 2, 4), torch.zeros(1, 2, dtype=torch.bool)
    assert kd_loss(logits, logits, torch.zeros(1, 2, dtype=torch.long), mask) == 0
