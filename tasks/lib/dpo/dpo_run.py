"""DPO (arXiv 2305.18290): a policy learns pairs of answers, of which one is preferred."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from tasks.lib.data.rows import read_parquet
from tasks.lib.dpo.pairs import pair_length, pairs_of, rows_by_prompt, tokenize_pairs
from tasks.lib.dpo.reference_cache import with_reference_cache
from tasks.lib.dpo.shared_prompt import with_shared_batches, with_shared_prompts
from tasks.lib.dpo.trained_policy import (
    PROGRESS,
    TokenizedFile,
    TrainedPolicy,
    count_trainable,
    fingerprint,
    load_sft,
    lora_of,
    pad_id,
)
from tasks.lib.models.loading import load_policy
from tasks.lib.models.model_folder import weights_hash
from tasks.lib.settings.dpo import Params
from tasks.lib.stage import Stage
from tasks.lib.training.hf_trainer import stage_trainer, train
from tasks.lib.training.sharded import loading_place
from tasks.lib.training.trainer_config import autocast_of, configured

PANELS = {
    "Loss": ["loss", "heldout_loss"],
    "Pairs in the right order": ["accuracy", "heldout_accuracy"],
    "Margin (beta x log-ratio)": ["margin", "heldout_margin"],
    "Log-probability of the answer": ["logp_chosen", "logp_rejected"],
}


def train_dpo(params: Params, stage: Stage, sft: Path, train_file: Path, held_out_file: Path) -> TrainedPolicy:
    """Train the model in the folder `sft` on the rankings of `train_file`. Problem for a wrong setting of a library."""
    from datasets import Dataset
    from trl import DPOConfig
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    from tasks.lib.finetuning.merged_lora import merge_in_passes  # imports peft

    # 1. Settings first: a wrong one should not cost a minute.
    defaults = autocast_of(sft, params.lora is not None)
    if params.share_prompt:
        defaults["precompute_ref_log_probs"] = True
    config = configured(DPOConfig, stage, params.trainer, eval_on_start=True, **defaults)
    lora = lora_of(params)

    # 2. Rankings become pairs, pairs become ids. A pair that is too long is dropped, never cut.
    tokenizer, model = load_sft(sft, lora)
    if lora is not None:
        merge_in_passes(lora)
    pairs = read_pairs(tokenizer, train_file, params.pairs_per_prompt, config.max_length)
    held_out = read_pairs(tokenizer, held_out_file, params.pairs_per_prompt, config.max_length)
    print(f"dpo: {len(pairs.rows)} pairs; {pairs.too_long} dropped, longer than {config.max_length} tokens", flush=True)

    # 3. The reference is the SFT model: loaded a second time, or the policy with its adapter off. TRL computes its
    #    log-probabilities in every step; with precompute_ref_log_probs the policy does, before its first step.
    reference = None
    if lora is None and not config.precompute_ref_log_probs:
        reference = load_policy(sft, dtype=torch.float32, on=loading_place())
    settings: dict[str, Any] = {}
    if config.precompute_ref_log_probs:
        settings["reference"] = {"weights": weights_hash(sft), "share_prompt": params.share_prompt}
    if params.share_prompt:
        settings["data_collator"] = with_shared_batches(DataCollatorForPreference(pad_id(tokenizer)))
        settings["groups"] = rows_by_prompt(pairs.rows)

    # 4. Train. `reference`, `groups`, `lengths`, `ids` and `first_loss` are not TRL's: see stage_trainer and
    #    reference_cache.py.
    torch.manual_seed(stage.seed_of("adapter"))  # TRL makes it
    trainer = stage_trainer(trainer_class(params.share_prompt, config.precompute_ref_log_probs))(
        model=model,
        ref_model=reference,
        args=config,
        processing_class=tokenizer,
        peft_config=lora,
        train_dataset=Dataset.from_list(pairs.rows),
        eval_dataset=Dataset.from_list(held_out.rows),
        lengths=[pair_length(row) for row in pairs.rows],
        ids=[row["id"] for row in pairs.rows],
        first_loss=first_loss(config),
        **settings,
    )
    trainable = count_trainable(trainer.model)
    log = train(trainer, stage, fingerprint(params, stage, sft, [train_file, held_out_file]), PROGRESS)
    return TrainedPolicy(trainer, tokenizer, lora, trainable, log, "pairs", pairs, held_out, PANELS)


def read_pairs(tokenizer: Any, path: Path, per_prompt: int, max_length: int | None) -> TokenizedFile:
    """The pairs of a file of rankings as ids, at most `per_prompt` of a prompt; longer ones are dropped and counted."""
    pairs, figures = pairs_of(read_parquet(path), per_prompt)
    rows, too_long = tokenize_pairs(tokenizer, pairs, max_length, path)
    return TokenizedFile(rows, too_long, figures)


def trainer_class(share_prompt: bool, precompute_reference: bool) -> Any:
    """TRL's DPOTrainer with what the settings need; a shared prompt needs the reference beforehand."""
    from trl import DPOTrainer

    if share_prompt:
        return with_shared_prompts(with_reference_cache(DPOTrainer))
    if precompute_reference:
        return with_reference_cache(DPOTrainer)
    return DPOTrainer


def first_loss(config: Any) -> float | None:
    """What the loss must be at the start, where policy and reference are one: log 2 with the plain loss, else None.

    None also where the reference's log-probabilities come from other batches, before training: in 16 bits they differ
    by more than the check allows.
    """
    is_plain = config.loss_type == ["sigmoid"] and not config.label_smoothing and not config.use_weighting
    return math.log(2) if is_plain and not config.precompute_ref_log_probs else None
