"""TRL's DPOTrainer with one pass per prompt: all answers of its pairs follow it in one row.

The pairs of a prompt come in one batch, each different answer once (tasks/lib/models/shared_prefix.py). The model
then returns log-probabilities where TRL expects them, so every loss and figure of TRL's stays as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tasks.lib.models.chat import IGNORED
from tasks.lib.models.shared_prefix import Row as BranchedRow
from tasks.lib.models.shared_prefix import branch_mask, branched, padded
from tasks.lib.stage import Problem

PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")  # what TRL's fused head returns
Pair = dict[str, Any]  # with prompt_ids, chosen_ids and rejected_ids
Ids = tuple[int, ...]


def with_shared_batches(
    collate: Callable[[Sequence[Pair]], dict[str, Any]],
) -> Callable[[Sequence[Pair]], dict[str, Any]]:
    """TRL's collator `collate`, whose batch also gets `shared`: the same pairs with every prompt once."""

    def collate_shared(pairs: Sequence[Pair]) -> dict[str, Any]:
        batch = collate(pairs)
        return batch | {"shared": shared_batch(pairs, batch["input_ids"].shape[1])}

    return collate_shared


def shared_batch(pairs: Sequence[Pair], width: int) -> dict[str, Tensor]:
    """The pairs (B of them) as one row per prompt, with all different answers to it: R rows of T tokens.

    `ids`, `positions`, `branch` and `labels` are (R, T). An answer is a branch (from 1) that begins with the last token
    of the prompt, which predicts the first of the answer; a label is the token that follows in the branch.
    `places` is (2B, width - 1), as TRL's batch of sequences of `width` tokens, chosen above rejected: where in the
    flattened (R, T) the log-probability of the next token is; -1 where none is asked for.
    """
    branches: dict[Ids, dict[Ids, int]] = {}  # prompt -> its answers, each with its number from 0
    for pair in pairs:
        answers = branches.setdefault(tuple(pair["prompt_ids"]), {})
        for answer in (tuple(pair["chosen_ids"]), tuple(pair["rejected_ids"])):
            answers.setdefault(answer, len(answers))

    rows: list[BranchedRow] = []
    row_of: dict[Ids, int] = {}
    for prompt, answers in branches.items():
        row_of[prompt] = len(rows)
        rows.append(branched([prompt + answer for answer in answers], len(prompt) - 1))
    ids, positions, branch = padded(rows)

    # a token predicts the one after it if both are of the same answer
    same_branch = (branch[:, 1:] == branch[:, :-1]) & (branch[:, 1:] > 0)
    labels = torch.full_like(ids, IGNORED)
    labels[:, :-1] = torch.where(same_branch, ids[:, 1:], IGNORED)

    places = torch.full((2 * len(pairs), width - 1), -1)
    for number, pair in enumerate(pairs):
        prompt = tuple(pair["prompt_ids"])
        row = row_of[prompt]
        for sequence, side in ((number, "chosen_ids"), (number + len(pairs), "rejected_ids")):
            answer = tuple(pair[side])
            last = row * ids.shape[1] + rows[row].ends[branches[prompt][answer]]
            start = len(prompt) - 1
            places[sequence, start : start + len(answer)] = torch.arange(last - len(answer), last)
    return {"ids": ids, "positions": positions, "branch": branch, "labels": labels, "places": places}


def accept_shared_batches(model: Any) -> None:
    """Let a model with TRL's fused head take the batches of `with_shared_batches`; others pass as before."""
    whole_forward = model.forward

    @functools.wraps(type(model).forward)
    def forward(*args: Any, shared: dict[str, Tensor] | None = None, **settings: Any) -> Any:
        if shared is None:
            return whole_forward(*args, **settings)
        output = whole_forward(
            input_ids=shared["ids"],
            position_ids=shared["positions"],
            attention_mask=branch_mask(shared["branch"], model.dtype),
            shift_labels=shared["labels"],
            fused_lm_head=True,
        )
        places = shared["places"]
        is_scored = places >= 0
        per_token: dict[str, Tensor | None] = {}
        for name in PER_TOKEN:
            values = getattr(output, name)  # (R, T)
            if values is not None:
                values = torch.where(is_scored, values.reshape(-1)[places.clamp(min=0)], 0)  # (2B, width - 1)
            per_token[name] = values
        return type(output)(loss=output.loss, label_mask=is_scored, **per_token)

    model.forward = forward


def with_shared_prompts(Base: Any) -> Any:
    """The trainer class `Base` (trl.DPOTrainer with precompute_ref_log_probs) for batches of `with_shared_batches`."""

    class SharedPromptTrainer(Base):
        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            """TRL calls it once per set before training; the reference too reads a prompt once."""
            if name == "train":
                from peft import PeftModel

                model = self.model
                accept_shared_batches(model.get_base_model() if isinstance(model, PeftModel) else model)
                longest = max(dataset, key=lambda pair: len(pair["prompt_ids"]) + len(pair["chosen_ids"]))
                refuse_unless_equal(self, [pair for pair in dataset if pair["prompt_ids"] == longest["prompt_ids"]])
            return super()._precompute_ref_logps(dataset, name, batch_size)

    return SharedPromptTrainer


@torch.no_grad()
def refuse_unless_equal(trainer: Any, pairs: Sequence[Pair]) -> None:
    """Problem when the model reads a shared prompt otherwise than whole sequences (sliding windows)."""
    kind = trainer.model.config._attn_implementation
    if "flash" in kind:
        raise Problem(f"dpo.share_prompt: {kind} takes no custom mask; load with sdpa, or set it to false")
    inputs = trainer._prepare_inputs(trainer.data_collator(pairs))
    shared = torch.cat(trainer.compute_ref_log_probs(trainer.model, inputs))  # (2B,) sums over the answers' tokens
    inputs.pop("shared")
    whole = torch.cat(trainer.compute_ref_log_probs(trainer.model, inputs))
    difference = ((whole - shared).abs() / inputs["completion_mask"].sum(1)).max().item()
    is_float32 = trainer.model.dtype == torch.float32 and not trainer.args.bf16
    if not difference < (1e-4 if is_float32 else 3e-2):  # not less: also when it is NaN
        raise Problem(
            f"dpo.share_prompt: {trainer.model.config.model_type} does not read a shared prompt as it reads "
            f"whole sequences (log-probabilities differ by {difference:.2g} per token); set it to false"
        )
