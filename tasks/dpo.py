"""dpo: direct preference optimisation (arXiv 2305.18290) of the SFT model on rankings, or KTO.

Reads   models/sft, data/preferences/{train,heldout}.parquet (with `thumbs` ratings_{train,heldout}.parquet),
        reports/check/rankings.json
Writes  models/dpo, reports/dpo.json, reports/plots/dpo.csv, reports/plots/dpo.png
Run     python -m tasks.dpo
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from tasks.lib.dpo.dpo_run import train_dpo
from tasks.lib.dpo.drift import drift
from tasks.lib.dpo.kto_run import train_kto
from tasks.lib.dpo.trained_policy import FIGURES, TrainedPolicy
from tasks.lib.finetuning.lora import save_adapted
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.models.precision import kept_dtype
from tasks.lib.plots import curves
from tasks.lib.settings.dpo import Params
from tasks.lib.stage import Stage, main
from tasks.lib.training.distributed import is_first
from tasks.lib.training.hf_trainer import curve
from tasks.lib.training.launching import under_launcher
from tasks.lib.training.read_back import ROWS, rounding, save_as_trained
from tasks.lib.training.sharded import gathered

SFT, OUT = Path("models/sft"), Path("models/dpo")
TRAIN, HELD_OUT = Path("data/preferences/train.parquet"), Path("data/preferences/heldout.parquet")
TRAIN_RATINGS = Path("data/preferences/ratings_train.parquet")
HELD_OUT_RATINGS = Path("data/preferences/ratings_heldout.parquet")


def run(params: Params, stage: Stage) -> None:
    # 1. Train: on pairs of answers (DPO), or on single answers that are good or bad (KTO).
    if params.method == "dpo":
        trained = train_dpo(params, stage, SFT, TRAIN, HELD_OUT)
    elif params.thumbs:
        trained = train_kto(params, stage, SFT, TRAIN_RATINGS, HELD_OUT_RATINGS)
    else:
        trained = train_kto(params, stage, SFT, TRAIN, HELD_OUT)

    # 2. Save the policy: its weights, or the adapter on the SFT model. One process does; sharded weights are gathered
    #    into an untrained one.
    policy = gathered(trained.trainer, lambda: untrained_policy(trained.lora))
    if not is_first():
        return
    rows = trained.held_out_sequences()[:ROWS]
    tolerance = rounding(trained.trainer.args)
    save_as_trained(lambda: save(policy, trained), OUT, policy, rows, SFT, tolerance=tolerance)

    # 3. Curves, and figures of what was saved.
    steps = curve(trained.log, FIGURES)
    curves(Path("reports/plots/dpo"), steps, "step", trained.panels)
    report = trained.data_figures() | trained.training_figures(steps)
    prompts = trained.held_out_prompts()[: params.samples]
    if prompts:
        settings: dict[str, Any] = {"max_new_tokens": params.max_new_tokens, "seed": stage.seed_of("drift")}
        report |= drift(load_policy(OUT), load_policy(SFT), trained.tokenizer, prompts, **settings)
    stage.report(report)
    shutil.rmtree(stage.checkpoints, ignore_errors=True)


def save(policy: Any, trained: TrainedPolicy) -> None:
    """Write the policy: its weights, or its adapter on the SFT model."""
    if trained.lora is None:
        save_model(policy, trained.tokenizer, OUT, dtype=kept_dtype(SFT))
    else:
        save_adapted(policy, trained.tokenizer, SFT, OUT)


def untrained_policy(lora: Any) -> Any:
    """The SFT model on the CPU, with adapters if they are what is trained: the shell for gathered weights."""
    from peft import get_peft_model

    if lora is None:
        return load_policy(SFT, dtype=torch.float32, on="cpu")
    return get_peft_model(load_policy(SFT, on="cpu"), lora)


if __name__ == "__main__":
    main(__file__, Params, under_launcher(run))
