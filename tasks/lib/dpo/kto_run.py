"""KTO (arXiv 2402.01306): a policy learns single answers that are good or bad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tasks.lib.data.rows import Row, read_parquet
from tasks.lib.dpo.kto_labels import (
    answer_length,
    labels_of_pairs,
    labels_of_ratings,
    tokenize_answers,
    with_mismatched_answers,
)
from tasks.lib.dpo.pairs import pairs_of
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
from tasks.lib.settings.dpo import Params
from tasks.lib.stage import Problem, Stage
from tasks.lib.training.hf_trainer import stage_trainer, train
from tasks.lib.training.sharded import loading_place
from tasks.lib.training.trainer_config import autocast_of, configured

PANELS = {
    "Loss": ["loss", "heldout_loss"],
    "Margin (beta x log-ratio)": ["margin", "heldout_margin"],
    "Log-probability of the answer": ["logp_chosen", "logp_rejected"],
}


def train_kto(params: Params, stage: Stage, sft: Path, train_file: Path, held_out_file: Path) -> TrainedPolicy:
    """Train the model in the folder `sft` on the rankings, or with `thumbs` on the ratings, of `train_file`.

    Problem for a wrong setting of a library.
    """
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    # 1. Settings first: a wrong one should not cost a minute.
    autocast = autocast_of(sft, params.lora is not None)
    config = configured(KTOConfig, stage, params.trainer, eval_on_start=True, **autocast)
    lora = lora_of(params)

    # 2. Rankings or ratings become good and bad answers, these become ids. One that is too long is dropped, never cut.
    tokenizer, model = load_sft(sft, lora)
    answers = read_answers(tokenizer, train_file, params.thumbs, config.max_length)
    held_out = read_answers(tokenizer, held_out_file, params.thumbs, config.max_length)
    dropped = f"{answers.too_long} dropped, longer than {config.max_length} tokens"
    print(f"dpo: {len(answers.rows)} answers; {dropped}", flush=True)

    # 3. Train. The reference is the SFT model: loaded a second time, or the policy with its adapter off.
    torch.manual_seed(stage.seed_of("adapter"))
    reference = load_policy(sft, dtype=torch.float32, on=loading_place()) if lora is None else None
    trainer = stage_trainer(KTOTrainer)(
        model=model,
        ref_model=reference,
        args=config,
        processing_class=tokenizer,
        peft_config=lora,
        train_dataset=Dataset.from_list(answers.rows),
        eval_dataset=Dataset.from_list(held_out.rows),
        data_collator=with_mismatched_answers(DataCollatorForUnpairedPreference(pad_id(tokenizer))),
        lengths=[answer_length(row) for row in answers.rows],
        ids=[row["id"] for row in answers.rows],
        first_loss=first_loss(config),
    )
    trainable = count_trainable(trainer.model)
    log = train(trainer, stage, fingerprint(params, stage, sft, [train_file, held_out_file]), PROGRESS)
    return TrainedPolicy(trainer, tokenizer, lora, trainable, log, "answers", answers, held_out, PANELS)


def read_answers(tokenizer: Any, path: Path, thumbs: str | None, max_length: int | None) -> TokenizedFile:
    """The good and bad answers of a file of rankings, or by the attribute `thumbs` of a file of ratings."""
    answers = labels_of_rankings(path) if thumbs is None else labels_of_thumbs(path, thumbs)
    rows, too_long = tokenize_answers(tokenizer, answers, max_length, path)
    good = sum(row["label"] for row in rows)
    return TokenizedFile(rows, too_long, {"desirable": good, "undesirable": len(rows) - good})


def labels_of_rankings(path: Path) -> list[Row]:
    """The answers that win, or lose, most of the pairs that the annotators' majority decides."""
    pairs, _ = pairs_of(read_parquet(path))
    return labels_of_pairs(pairs)


def labels_of_thumbs(path: Path, thumbs: str) -> list[Row]:
    """The answers whose ratings by the attribute `thumbs` are mostly above 0, or mostly not."""
    if not path.is_file():
        raise Problem(f"dpo.thumbs: {path} does not exist; name {thumbs} in preferences.attributes")
    return labels_of_ratings(read_parquet(path), thumbs)


def first_loss(config: Any) -> float | None:
    """What the loss must be at the start, where policy and reference are one: 1/2; None where it is not known."""
    return 0.5 if config.desirable_weight == config.undesirable_weight == 1 else None
