"""A smaller model learns from a larger one: the student's start, the teacher's targets, the losses.

Sequence-level: the teacher writes the answers (arXiv 1606.07947). Token-level: its most probable tokens are
matched at a temperature (arXiv 1503.02531). On-policy: it corrects answers that the student wrote (GKD, arXiv
2306.13649).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from tasks.lib.models.batches import batches_by_length, lengths_of
from tasks.lib.models.generation import generate
from tasks.lib.models.logprobs import answer_logits, padded_answers
from tasks.lib.models.pass_size import passes_within, training_tokens
from tasks.lib.stage import Problem

Ids = list[int]
LEAST_TAIL = 1e-7  # probability of all tokens that are not among the teacher's best, at least: its logarithm is taken


def chosen_layers(layers: int | Sequence[int], count: int) -> list[int]:
    """The teacher's layers that the student starts from: every n-th for a number n, or the given ones.

    Raises Problem when a layer does not exist or is named twice.
    """
    chosen = list(range(0, count, layers)) if isinstance(layers, int) else list(layers)
    if not chosen or sorted(set(chosen)) != chosen or chosen[0] < 0 or chosen[-1] >= count:
        raise Problem(f"distill.layers: expected rising layer numbers from 0 to {count - 1}, found {chosen}")
    return chosen


def student_of(teacher: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A model made of copies of the teacher's embeddings, head and the given layers (the DistilBERT recipe).

    It is built from a configuration with fewer layers, because each layer knows its place in the KV cache. It is in
    float32, since all its weights will be trained. Problem when the teacher's layers are not one list of modules, or
    its configuration does not say what each of them is.
    """
    student = untrained_student(teacher, layers).to(teacher.device)  # type: ignore[arg-type]
    place = _place_of_layers(teacher)
    teacher_weights = teacher.state_dict()
    student_weights = {}
    for name in student.state_dict():
        student_weights[name] = teacher_weights[_name_in_teacher(name, place, layers)]
    student.load_state_dict(student_weights)
    return student.eval()


def untrained_student(teacher: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """The student with random weights; Problem when the teacher's are not all that it needs."""
    config = copy.deepcopy(teacher.config)
    count = config.num_hidden_layers
    config.num_hidden_layers = len(layers)
    for key, value in teacher.config.to_dict().items():
        if isinstance(value, list) and len(value) == count:  # what each layer is: full or sliding attention, ...
            setattr(config, key, [value[layer] for layer in layers])
    student = type(teacher)(config)
    place, shapes = _place_of_layers(teacher), {}
    for name, tensor in teacher.state_dict().items():
        shapes[name] = tensor.shape
    for name, tensor in student.state_dict().items():
        if shapes.get(_name_in_teacher(name, place, layers)) != tensor.shape:
            raise Problem(
                f"distill.layers: {config.model_type}: a student of the layers {[*layers]} has a {name} that the "
                "teacher lacks; choose other layers"
            )
    return student


def _place_of_layers(teacher: PreTrainedModel) -> str:
    """The name of the list that holds the teacher's layers (Llama: `model.layers`, GPT-2: `transformer.h`)."""
    count = teacher.config.num_hidden_layers
    for name, module in teacher.named_modules():  # the outermost first
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return name
    raise Problem(f"distill.layers: {teacher.config.model_type} has no list of {count} layers to make a student from")


def _name_in_teacher(name: str, place: str, layers: Sequence[int]) -> str:
    """`model.layers.1.mlp` of the student is `model.layers.7.mlp` of the teacher when `layers[1]` is 7."""
    if not name.startswith(f"{place}."):
        return name
    number, _, rest = name.removeprefix(f"{place}.").partition(".")
    return f"{place}.{layers[int(number)]}.{rest}"


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    mask: Tensor,
    alpha: float = 0.5,
    temperature: float = 2.0,
) -> Tensor:
    """alpha T^2 KL(teacher_T || student_T) + (1 - alpha) cross-entropy (arXiv 1503.02531, section 2): a scalar.

    Logits (B, T, V), labels and mask (B, T); both terms are means over the True positions of the mask. T^2 keeps the
    size of the gradient when T changes. Labels at False positions may be anything.
    """
    student_logits, teacher_logits = student_logits[mask].float(), teacher_logits[mask].float()  # (positions, V)
    if student_logits.shape[0] == 0:
        return student_logits.sum()  # 0, with a gradient of 0
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, log_target=True, reduction="batchmean")
    return alpha * temperature**2 * divergence + (1 - alpha) * F.cross_entropy(student_logits, labels[mask])


def sparse_kd_loss(
    student_logits: Tensor,
    teacher_logprobs: Tensor,
    teacher_ids: Tensor,
    labels: Tensor,
    alpha: float,
    temperature: float,
) -> Tensor:
    """`kd_loss` where of the teacher's distribution only the k likeliest tokens are known: a scalar.

    Logits (N, V) and labels (N,) of N positions; the teacher's log-probabilities at the temperature (N, k), and their
    tokens. All other tokens count as one, with what is left of the probability on both sides: without it the student
    would learn that they are impossible. With k = V this is `kd_loss`.
    """
    scaled = student_logits.float() / temperature
    student = scaled.gather(-1, teacher_ids.long()) - scaled.logsumexp(-1, keepdim=True)  # (N, k)
    teacher = _with_tail(teacher_logprobs)  # (N, k + 1)
    divergence = F.kl_div(_with_tail(student), teacher, log_target=True, reduction="batchmean")
    return alpha * temperature**2 * divergence + (1 - alpha) * F.cross_entropy(student_logits.float(), labels)


def _with_tail(logprobs: Tensor) -> Tensor:
    """Log-probabilities (N, k) of some tokens, and of all others together: (N, k + 1)."""
    tail = (1 - logprobs.exp().sum(-1, keepdim=True)).clamp(min=LEAST_TAIL)
    return torch.cat([logprobs, tail.log()], -1)


TENSORS = ("lengths", "tokens", "logprobs", "ids")  # of targets, in a checkpoint


@dataclass(frozen=True)
class Targets:
    """What the teacher answers to N prompts. The tables hold the tokens of all answers, one after the other."""

    answers: list[Ids]  # N greedy answers, EOS included
    logprobs: Tensor  # (tokens, k) the teacher's highest log-probabilities for each token of its answers
    ids: Tensor  # (tokens, k) which tokens they belong to

    def tensors(self) -> dict[str, Tensor]:
        """The same as named tensors, for a checkpoint."""
        lengths, tokens = [], Ids()
        for answer in self.answers:
            lengths.append(len(answer))
            tokens += answer
        return {
            "lengths": torch.tensor(lengths),
            "tokens": torch.tensor(tokens),
            "logprobs": self.logprobs,
            "ids": self.ids,
        }

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Targets:
        """Back from named tensors."""
        answers = [answer.tolist() for answer in tensors["tokens"].split(tensors["lengths"].tolist())]
        return cls(answers, tensors["logprobs"], tensors["ids"])

    def of_rows(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The log-probabilities and their tokens, both (tokens, k), of the answers number `rows`."""
        starts = list(accumulate((len(answer) for answer in self.answers), initial=0))  # of each answer in the tables
        places = torch.cat([torch.arange(starts[row], starts[row + 1]) for row in rows])
        return self.logprobs[places], self.ids[places]


@torch.no_grad()
def teacher_targets(
    teacher: PreTrainedModel,
    prompts: Sequence[Ids],
    *,
    top_k: int,
    temperature: float,
    eos_id: int,
    pad_id: int,
    max_new_tokens: int,
    batch_size: int,
) -> Targets:
    """Let the teacher answer every prompt greedily, and keep its `top_k` highest log-probabilities at the temperature
    per answer token."""
    answers = generate(
        teacher, prompts, eos_id=eos_id, pad_id=pad_id, max_new_tokens=max_new_tokens,
        temperature=0.0, batch_size=batch_size, seed=0,
    )  # fmt: skip
    best_logprobs = [torch.empty(0)] * len(prompts)  # per prompt (tokens of its answer, k)
    best_ids = [torch.empty(0)] * len(prompts)
    for rows, batch_prompts, batch_answers in _batches(teacher, prompts, answers, batch_size):
        logits, is_answer, _ = logits_on(teacher, batch_prompts, batch_answers)
        for place, row in enumerate(rows):
            of_answer = logits[place, is_answer[place]].float() / temperature  # (tokens of the answer, V)
            best = of_answer.topk(min(top_k, of_answer.shape[-1]), dim=-1)
            best_logprobs[row] = (best.values - of_answer.logsumexp(-1, keepdim=True)).cpu()
            best_ids[row] = best.indices.int().cpu()
    return Targets(answers, torch.cat(best_logprobs), torch.cat(best_ids))


def off_policy_loss(
    student: PreTrainedModel,
    prompts: Sequence[Ids],
    targets: Targets,
    rows: Sequence[int],
    alpha: float,
    T: float,
) -> Tensor:
    """`sparse_kd_loss` on the teacher's answers to the prompts number `rows`, with its tokens as labels."""
    batch_prompts = [prompts[row] for row in rows]
    teacher_answers = [targets.answers[row] for row in rows]
    student_logits, is_answer, labels = logits_on(student, batch_prompts, teacher_answers)
    logprobs, ids = (table.to(student_logits.device) for table in targets.of_rows(rows))
    return sparse_kd_loss(student_logits[is_answer], logprobs, ids, labels[is_answer], alpha, T)


def on_policy_loss(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    prompts: Sequence[Ids],
    answers: Sequence[Ids],
    T: float,
) -> Tensor:
    """T^2 KL(teacher_T || student_T) on the student's own B answers: no labels, so there is no second term."""
    student_logits, is_answer, labels = logits_on(student, prompts, answers)
    with torch.no_grad():
        teacher_logits, _, _ = logits_on(teacher, prompts, answers)
    return kd_loss(student_logits, teacher_logits, labels, is_answer, alpha=1.0, temperature=T)


def passes_of(model: PreTrainedModel, prompts: Sequence[Ids], answers: Sequence[Ids]) -> list[list[int]]:
    """The numbers of prompts with their answers in passes that `model` can train on, or two models be compared on: one
    in the given order if that fits in memory, else several of rows of like length."""

    def padded(rows: Sequence[int]) -> int:
        return len(rows) * (max(len(prompts[row]) for row in rows) + max(len(answers[row]) for row in rows))

    tokens, rows = training_tokens(model, logits=True), [*range(len(prompts))]
    if padded(rows) > tokens:
        rows.sort(key=lambda row: len(prompts[row]) + len(answers[row]), reverse=True)
    return passes_within(tokens, rows, padded)


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
    for _, batch_prompts, batch_answers in _batches(reference, prompts, answers, batch_size):
        reference_logits, is_answer, labels = logits_on(reference, batch_prompts, batch_answers)
        model_logits, _, _ = logits_on(model, batch_prompts, batch_answers)
        mean = kd_loss(model_logits, reference_logits, labels, is_answer, alpha=1.0, temperature=1.0)
        tokens = int(is_answer.sum())
        total += mean.item() * tokens
        count += tokens
    return total / max(count, 1)


def logits_on(model: PreTrainedModel, prompts: Sequence[Ids], answers: Sequence[Ids]) -> tuple[Tensor, Tensor, Tensor]:
    """Of B prompts and their answers of at most T tokens: the logits (B, T, V) that predict the answers' tokens,
    `is_answer` (B, T), which is False on padding, and the tokens (B, T) themselves.
    """
    ids, is_token, is_answer = padded_answers(prompts, answers, model.device)
    width = is_answer.shape[1]
    return answer_logits(model, ids, is_token, width), is_answer, ids[:, -width:]


def _batches(
    model: PreTrainedModel, prompts: Sequence[Ids], answers: Sequence[Ids], batch_size: int
) -> Iterator[tuple[list[int], list[Ids], list[Ids]]]:
    """Row numbers, prompts and answers of batches of about equal length, the shortest first, that fit in memory."""
    for batch in batches_by_length(lengths_of(prompts, answers), batch_size):
        of_batch = [prompts[row] for row in batch], [answers[row] for row in batch]
        for places in passes_of(model, *of_batch):
            rows = [batch[place] for place in places]
            yield rows, [prompts[row] for row in rows], [answers[row] for row in rows]
