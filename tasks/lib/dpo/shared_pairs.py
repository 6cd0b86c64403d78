"""TRL's DPOTrainer with one pass per prompt: all answers of its pairs stand behind it in one row.

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
from tasks.lib.models.shared_prefix import branch_mask, branched, padded
from tasks.lib.stage import Problem

Pair = dict[str, Any]  # with prompt_ids, chosen_ids and rejected_ids


def collator(
    collate: Callable[[Sequence[Pair]], dict[str, Any]],
) -> Callable[[Sequence[Pair]], dict[str, Any]]:
    """TRL's collator, whose batch also gets `shared`: the same pairs with every prompt once."""
    return lambda pairs: (batch := collate(pairs)) | {"shared": shared(pairs, batch["input_ids"].shape[1])}


def shared(pairs: Sequence[Pair], width: int) -> dict[str, Tensor]:
    """Ids, positions, branches and labels (R, T) of R prompts with their answers, and `places` (2B, width - 1).

    A branch repeats the last token of the prompt, which predicts the first of the answer. `labels` holds the
    token that follows. `places` says for every position of TRL's batch (chosen above rejected) where in the
    flattened (R, T) its log-probability is; -1 where none is asked for.
    """
    answers: dict[tuple[int, ...], dict[tuple[int, ...], int]] = {}
    for pair in pairs:
        known = answers.setdefault(tuple(pair["prompt_ids"]), {})
        for which in ("chosen_ids", "rejected_ids"):
            known.setdefault(tuple(pair[which]), len(known))
    rows = [branched([prompt + answer for answer in known], len(prompt) - 1) for prompt, known in answers.items()]
    ids, positions, branch = padded(rows)
    same_branch = (branch[:, 1:] == branch[:, :-1]) & (branch[:, 1:] > 0)
    labels = torch.full_like(ids, IGNORED)
    labels[:, :-1] = torch.where(same_branch, ids[:, 1:], IGNORED)
    places = torch.full((2 * len(pairs), width - 1), -1)
    row_of = {prompt: row for row, prompt in enumerate(answers)}
    for number, pair in enumerate(pairs):
        prompt = tuple(pair["prompt_ids"])
        for place, which in ((number, "chosen_ids"), (number + len(pairs), "rejected_ids")):
            count, row = len(pair[which]), row_of[prompt]
            end = row * ids.shape[1] + rows[row][3][answers[prompt][tuple(pair[which])]]
            places[place, len(prompt) - 1 : len(prompt) - 1 + count] = torch.arange(end - count, end)
    return {"ids": ids, "positions": positions, "branch": branch, "labels": labels, "places": places}


def share(model: Any) -> None:
    """Let a model with TRL's fused head take the batches of `collator`; others pass as before."""
    whole = model.forward

    @functools.wraps(type(model).forward)
    def forward(*args: Any, shared: dict[str, Tensor] | None = None, **settings: Any) -> Any:
        if shared is None:
            return whole(*args, **settings)
        found = whole(
            input_ids=shared["ids"],
            position_ids=shared["positions"],
            attention_mask=branch_mask(shared["branch"], model.dtype),
            shift_labels=shared["labels"],
            fused_lm_head=True,
        )
        places = shared["places"]
        asked = places >= 0

        def spread(values: Tensor | None) -> Tensor | None:
            return None if values is None else torch.where(asked, values.reshape(-1)[places.clamp(min=0)], 0)

        per_token = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
        return type(found)(
            loss=found.loss, label_mask=asked, **{name: spread(getattr(found, name)) for name in per_token}
        )

    model.forward = forward


def sharing(Base: Any) -> Any:
    """The trainer class `Base` (trl.DPOTrainer with precompute_ref_log_probs) for batches of `collator`."""

    class Sharing(Base):
        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            """Called once per set before training: the reference passes once per prompt too."""
            if name == "train":
                from peft import PeftModel

                model = self.model
                share(model.get_base_model() if isinstance(model, PeftModel) else model)
                longest = max(dataset, key=lambda pair: len(pair["prompt_ids"]) + len(pair["chosen_ids"]))
                refuse_unless_equal(self, [p for p in dataset if p["prompt_ids"] == longest["prompt_ids"]])
            return super()._precompute_ref_logps(dataset, name, batch_size)

    return Sharing


@torch.no_grad()
def refuse_unless_equal(trainer: Any, pairs: Sequence[Pair]) -> None:
    """Problem when the model reads a shared prompt otherwise than whole sequences (sliding windows)."""
    kind = trainer.model.config._attn_implementation
    if "flash" in kind:
        raise Problem(f"dpo.share_prompt: {kind} takes no mask of ours; load with sdpa, or set it to false")
    inputs = trainer._prepare_inputs(trainer.data_collator(pairs))
    together = torch.cat(trainer.compute_ref_log_probs(trainer.model, inputs))
    inputs.pop("shared")
    apart = torch.cat(trainer.compute_ref_log_probs(trainer.model, inputs)) - together
    per_token = (apart.abs() / inputs["completion_mask"].sum(1)).max().item()
    if not per_token < (1e-4 if trainer.model.dtype == torch.float32 and not trainer.args.bf16 else 3e-2):
        raise Problem(
            f"dpo.share_prompt: {trainer.model.config.model_type} does not read a shared prompt as it reads "
            f"whole sequences (log-probabilities differ by {per_token:.2g} per token); set it to false"
        )
