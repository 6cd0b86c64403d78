"""base: the model that the line starts from.

`model: embedded` trains a tiny Llama and its tokenizer on the text that ships with the project. A Hub id
with a pinned revision, or a folder, is taken in as it is; `pretraining.steps` above 0 continues its
pre-training on the text first.

Reads   base.text; the folder or Hub model named by base.model
Writes  models/base, reports/base.json, reports/plots/base.csv, reports/plots/base.png
Run     python -m tasks.base
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tasks.lib.finetuning.pretraining import blocks, documents, new_llama, perplexity, pretrain, train_tokenizer
from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.hub_models import materialise
from tasks.lib.models.loading import device, load_policy, save_model
from tasks.lib.plots import curves
from tasks.lib.settings.base import Params
from tasks.lib.stage import Problem, Stage, file_hash, main
from tasks.lib.training.checkpoints import Checkpoint

OUT = Path("models/base")


def run(params: Params, stage: Stage) -> None:
    # 1. The model to start from: new, or somebody's.
    embedded = params.model == "embedded"
    if embedded:
        tokenizer = train_tokenizer(documents(params.text), params.tiny.vocab_size)
        torch.manual_seed(stage.seed_of("weights"))
        shape = params.tiny.model_dump(exclude={"vocab_size"})
        save_model(new_llama(tokenizer, **shape), tokenizer, OUT)
        facts: dict[str, Any] = {"source": "embedded"}
    else:
        facts = materialise(params.model, params.revision, OUT)
    model, tokenizer = load_policy(OUT).to(device()), load_tokenizer(OUT)
    facts |= {"parameters": sum(p.numel() for p in model.parameters()), "vocabulary": len(tokenizer)}

    # 2. Pre-training, judged on blocks that it does not see.
    if params.pretraining.steps:
        settings = params.pretraining
        ids = blocks(params.text, tokenizer, settings.sequence_length)
        held_out, seen = ids[: settings.heldout_blocks].to(model.device), ids[settings.heldout_blocks :]
        if len(seen) < settings.batch_size:
            raise Problem(
                f"{params.text}: {len(ids)} blocks of {settings.sequence_length} tokens are too few for "
                f"{settings.heldout_blocks} held-out ones and a batch of {settings.batch_size}; add text"
            )
        facts |= {"blocks": len(seen), "perplexity_before": perplexity(model, held_out)}
        fingerprint = {
            "params": params.model_dump(mode="json"),
            "seed": stage.seed,
            "threads": stage.threads,
            "text": file_hash(params.text),
            "start": facts.get("weights"),
        }
        checkpoint = Checkpoint(stage.checkpoints, fingerprint)
        log = pretrain(
            model,
            seen,
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            warmup=settings.warmup,
            seed=stage.seed_of("batches"),
            checkpoint=checkpoint,
            save_every=settings.save_every,
            progress=stage.progress,
        )
        facts |= {
            "perplexity": perplexity(model, held_out),
            "tokens": settings.steps * settings.batch_size * ids.shape[1],
        }
        save_model(model, tokenizer, OUT)
        checkpoint.clear()
        curves(Path("reports/plots/base"), log, "step", {"Loss per token": ["loss"]})
    else:
        curves(Path("reports/plots/base"), [], "step", {"Loss per token (not trained here)": ["loss"]})
    stage.report(facts)


if __name__ == "__main__":
    main(__file__, Params, run)
