"""A smaller model learns from a larger one: the student's start, the teacher's targets, the losses.

Sequence-level: the teacher writes the answers (arXiv 1606.07947). Token-level: its most probable tokens are
matched at a temperature (arXiv 1503.02531). On-policy: it corrects answers that the student wrote (GKD, arXiv
2306.13649).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from tasks.lib.models.batches import batches_by_length, lengths_of
from tasks.lib.models.generation import generate
from tasks.lib.models.logprobs import answer_logits, padded_answers
from tasks.lib.stage import Problem

Ids = list[int]
ABSENT = -1e4  # logit of a token that is not among the teacher's best: its probability is exactly 0 in fp32


def chosen_layers(layers: int | Sequence[int], count: int) -> list[int]:
    """The teacher's layers that the student starts from: every n-th for a number n, or the given ones.

    Raises Problem when a layer does not exist or stands twice.
    """
    chosen = list(range(0, count, layers)) if isinstance(layers, int) else list(layers)
    if not chosen or sorted(set(chosen)) != chosen or chosen[0] < 0 or chosen[-1] >= count:
        raise Problem(f"distill.layers: expected rising layer numbers from 0 to {count - 1}, found {chosen}")
    return chosen


def student_of(teacher: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A model made of copies of the teacher's embeddings, head and the given layers (the DistilBERT recipe).

    It is built from a configuration with fewer layers, because each layer knows its place in the KV cache.
    """
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(layers)
    if kinds := getattr(teacher.config, "layer_types", None):
        config.layer_types = [kinds[layer] for layer in layers]
    student = type(teacher)(config).to(teacher.dtype).to(teacher.device)  # type: ignore[arg-type]
    source = teacher.state_dict()

    def of_teacher(name: str) -> str:
        return re.sub(r"\b(layers|h)\.(\d+)\.", lambda m: f"{m[1]}.{layers[int(m[2])]}.", name, count=1)

    student.load_state_dict({name: source[of_teacher(name)] for name in student.state_dict()})
    return student.eval()


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    mask: Tensor,
    alpha: float = 0.5,
    temperature: float = 2.0,
) -> Tensor:
    """alpha T^2 KL(teacher_T || student_T) + (1 - alpha) cross-entropy (arXiv 1503.02531, section 2).

    Logits (B, T, V), labels and mask (B, T); both terms are means over the True positions. T^2 keeps the
    size of the gradient when T changes. Labels at False positions may be anything.
    """
    student_logits, teacher_logits = student_logits[mask].float(), teacher_logits[mask].float()
    if student_logits.shape[0] == 0:
        return student_logits.sum()
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, log_target=True, reduction="batchmean")
    return alpha * temperature**2 * divergence + (1 - alpha) * F.cross_entropy(student_logits, labels[mask])


@dataclass(frozen=True)
class Targets:
    """What the teacher said to N prompts. The tables hold the tokens of all answers, one after the other."""

    answers: list[Ids]  # N greedy answers, EOS included
    logits: Tensor  # (tokens, k) the teacher's highest logits for each token of its answers
    ids: Tensor  # (tokens, k) which tokens they belong to

    def tensors(self) -> dict[str, Tensor]:
        """The same as named tensors, for a checkpoint."""
        lengths = torch.tensor([len(answer) for answer in self.answers])
        tokens = torch.tensor([token for answer in self.answers for token in answer])
        return {"lengths": lengths, "tokens": tokens, "logits": self.logits, "ids": self.ids}

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Targets:
        """Back from named tensors."""
        answers = [part.tolist() for part in tensors["tokens"].split(tensors["lengths"].tolist())]
        return cls(answers, tensors["logits"], tensors["ids"])

    def dense(self, rows: Sequence[int], width: int, vocabulary: int) -> Tensor:
        """Teacher logits (B, width, V) of some rows: the kept ones, every other token with probability 0."""
        starts = [0, *torch.tensor([len(answer) for answer in self.answers]).cumsum(0).tolist()]
        full = torch.full((len(rows), width, vocabulary), ABSENT)
        for place, row in enumerate(rows):
            part = slice(starts[row], starts[row + 1])
            length = starts[row + 1] - starts[row]
            full[place, :length] = full[place, :length].scatter(-1, self.ids[part].long(), self.logits[part])
        return full


@torch.no_grad()
def taught(
    teacher: PreTrainedModel,
    prompts: Sequence[Ids],
    *,
    top_k: int,
    eos_id: int,
    pad_id: int,
    max_new_tokens: int,
    batch_size: int,
) -> Targets:
    """Let the teacher answer every prompt greedily, and keep its `top_k` highest logits per answer token."""
    answers = generate(
        teacher, prompts, eos_id=eos_id, pad_id=pad_id, max_new_tokens=max_new_tokens,
        temperature=0.0, batch_size=batch_size, seed=0,
    )  # fmt: skip
    kept: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(prompts)
    for rows in batches_by_length(lengths_of(prompts, answers), batch_size):
        logits, is_answer, _ = logits_on(teacher, [prompts[i] for i in rows], [answers[i] for i in rows])
        best = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
        for place, row in enumerate(rows):
            mine = is_answer[place]
            kept[row] = best.values[place][mine].float().cpu(), best.indices[place][mine].int().cpu()
    return Targets(answers, torch.cat([v for v, _ in kept]), torch.cat([i for _, i in kept]))


def taught_loss(
    student: PreTrainedModel,
    prompts: Sequence[Ids],
    targets: Targets,
    rows: Sequence[int],
    alpha: float,
    T: float,
) -> Tensor:
    """kd_loss on the teacher's answers to some rows: its kept probabilities, and its tokens as labels."""
    logits, is_answer, labels = logits_on(student, [prompts[i] for i in rows], [targets.answers[i] for i in rows])
    wanted = targets.dense(rows, logits.shape[1], logits.shape[2]).to(logits.device)
    return kd_loss(logits, wanted, labels, is_answer, alpha=alpha, temperature=T)


def corrected_loss(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    prompts: Sequence[Ids],
    answers: Sequence[Ids],
    T: float,
) -> Tensor:
    """T^2 KL(teacher_T || student_T) on the student's own answers: no labels, so there is no second term."""
    logits, is_answer, labels = logits_on(student, prompts, answers)
    with torch.no_grad():
        wanted, _, _ = logits_on(teacher, prompts, answers)
    return kd_loss(logits, wanted, labels, is_answer, alpha=1.0, temperature=T)


@torch.no_grad()
def divergence(
    reference: PreTrainedModel,
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    answers: Sequence[Ids],
    batch_size: int,
) -> float:
    """Mean KL(reference || model) in nats per token of the given answers."""
    total, count = 0.0, 0
    for rows in batches_by_length(lengths_of(prompts, answers), batch_size):
        some = [prompts[i] for i in rows], [answers[i] for i in rows]
        wanted, is_answer, labels = logits_on(reference, *some)
        logits, _, _ = logits_on(model, *some)
        mean = kd_loss(logits, wanted, labels, is_answer, alpha=1.0, temperature=1.0)
        total, count = total + mean.item() * int(is_answer.sum()), count + int(is_answer.sum())
    return total / max(count, 1)


def logits_on(model: PreTrainedModel, prompts: Sequence[Ids], answers: Sequence[Ids]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, T, V) for the answer tokens, is_answer (B, T) and the tokens (B, T) themselves."""
    ids, is_token, is_answer = padded_answers(prompts, answers, model.device)
    width = is_answer.shape[1]
    return answer_logits(model, ids, is_token, width), is_answer, ids[:, -width:]
