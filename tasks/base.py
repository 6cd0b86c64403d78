"""base: the model that the pipeline starts from.

`model: embedded` trains a tiny Llama and its tokenizer on the text that ships with the project. A Hub id with a pinned
revision, a folder, or a .gguf file is taken in as it is; `pretraining.steps` above 0 continues its pre-training on the
text first.

Reads   base.text; the folder, file or Hub model named by base.model
Writes  models/base, reports/base.json, reports/plots/base.csv, reports/plots/base.png
Run     python -m tasks.base
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tasks.lib.finetuning.pretraining import blocks, documents, new_llama, perplexity, pretrain, train_tokenizer
from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.intake import take_in
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.models.precision import chosen_dtype, kept_dtype
from tasks.lib.plots import curves
from tasks.lib.settings.base import Params
from tasks.lib.stage import Problem, Stage, file_hash, main
from tasks.lib.training.checkpoints import Checkpoint
from tasks.lib.training.read_back import ROWS, check_read_back, mean_loss

OUT = Path("models/base")


def run(params: Params, stage: Stage) -> None:
    # 1. The model to start from: new, or somebody's.
    facts = write_start(params, stage)
    is_trained = params.pretraining.steps > 0
    model, tokenizer = load_policy(OUT, dtype=torch.float32 if is_trained else None), load_tokenizer(OUT)
    facts |= {"parameters": sum(p.numel() for p in model.parameters()), "vocabulary": len(tokenizer)}
    facts["precision"] = str(kept_dtype(OUT)).removeprefix("torch.")

    # 2. Pre-training, if there is to be any.
    log: list[dict[str, float]] = []
    panels = {"Loss per token (not trained here)": ["loss"]}
    if is_trained:
        figures, log = pretrained(params, stage, model, tokenizer, facts.get("weights"))
        facts |= figures
        panels = {"Loss per token": ["loss"]}
    curves(Path("reports/plots/base"), log, "step", panels)
    stage.report(facts)


def write_start(params: Params, stage: Stage) -> dict[str, Any]:
    """Write models/base: the embedded model with random weights, or the model that is named. Facts for the report."""
    if params.model != "embedded":
        return take_in(
            params.model, params.revision, OUT, params.template_date, params.system_role, precision=stage.precision
        )
    tokenizer = train_tokenizer(documents(params.text), params.tiny.vocab_size)
    torch.manual_seed(stage.seed_of("weights"))
    shape = params.tiny.model_dump(exclude={"vocab_size"})
    model = new_llama(tokenizer, **shape)
    save_model(model, tokenizer, OUT, dtype=chosen_dtype(stage.precision, model.num_parameters()))
    return {"source": "embedded"}


def pretrained(
    params: Params, stage: Stage, model: Any, tokenizer: Any, start: str | None
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Train on the text, measure on blocks of it that are not seen, write models/base: figures, and the log.

    `start` is the hash of the weights that training starts from, None for new ones.
    """
    how = params.pretraining
    ids = blocks(params.text, tokenizer, how.sequence_length)
    held_out, seen = ids[: how.heldout_blocks].to(model.device), ids[how.heldout_blocks :]
    if len(seen) < how.batch_size:
        raise Problem(
            f"{params.text}: {len(ids)} blocks of {how.sequence_length} tokens are too few for "
            f"{how.heldout_blocks} held-out ones and a batch of {how.batch_size}; add text"
        )
    before = perplexity(model, held_out)
    fingerprint = {
        "params": params.model_dump(mode="json"),
        "seed": stage.seed,
        "threads": stage.threads,
        "text": file_hash(params.text),
        "start": start,
        "precision": stage.precision,
    }
    checkpoint = Checkpoint(stage.checkpoints, fingerprint)
    seed = stage.seed_of("batches")
    log = pretrain(model, seen, how, seed=seed, checkpoint=checkpoint, progress=stage.progress)
    figures = {
        "blocks": len(seen),
        "perplexity_before": before,
        "perplexity": perplexity(model, held_out),
        "tokens": how.steps * how.batch_size * ids.shape[1],
    }
    rows = held_out[:ROWS].tolist()
    trained = mean_loss(model, rows)
    save_model(model, tokenizer, OUT, dtype=kept_dtype(OUT))
    check_read_back(OUT, trained, lambda: mean_loss(load_policy(OUT), rows))
    checkpoint.clear()
    return figures, log


if __name__ == "__main__":
    main(__file__, Params, run)
