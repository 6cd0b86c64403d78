"""SFT on rows of very different lengths: useful tokens per CPU second of the stage's trainer and of TRL's SFTTrainer.

Equal model, rows, optimiser, learning rate, precision and number of tokens; one thread. TRL has its defaults: rows
in random order, padded to the longest of their batch, every position scored. Ours batches by length and scores
trained positions; once with as many rows a step as TRL, once with as many tokens. First both must give one batch the
same loss and gradients; the held-out loss after the epoch is printed with the seconds. TRL's packing is left out:
without FlashAttention it lets samples see each other.

Run     python -m benchmarks.sft_lengths            (one core: about three minutes)
"""

from __future__ import annotations

import math
import os
import random
import tempfile
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

import datasets
import torch
import trl
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer import utils

from benchmarks.reward_training import tokenizer
from tasks.lib.finetuning.packing import collator_of_packs, packed
from tasks.lib.stage import Stage
from tasks.lib.training.hf_trainer import stage_trainer
from tasks.lib.training.trainer_config import configured

VOCABULARY, LONGEST, ROWS, HELDOUT, BATCH = 512, 512, 1600, 200, 16
SUCCESSORS = 4  # tokens that may follow a token, all as likely: no model's loss is below log 4 = 1.386
USE_TRITON = utils._use_triton  # what TRL scores without ours


def rows_of(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of 8 to 512 tokens, log-normal, the first third of each a prompt that is not trained."""
    draw, rows = random.Random(seed), []
    for number in range(count):
        length = min(LONGEST, max(8, round(math.exp(draw.gauss(3.3, 1.0)))))
        ids = [draw.randrange(2, VOCABULARY)]
        while len(ids) < length:
            ids.append(2 + (ids[-1] * 31 + 97 * draw.randrange(SUCCESSORS)) % (VOCABULARY - 2))
        untrained = length // 3
        labels = [-100] * untrained + ids[untrained:]
        rows.append({"row": number, "id": str(number), "input_ids": ids, "labels": labels})
    return rows


def trainer(kind: str, rows: list[dict[str, Any]], held_out: list[dict[str, Any]], folder: str) -> Any:
    """`kind`: TRL; or ours by rows or tokens a step, or packed into sequences of these tokens; from equal weights."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}
    shape["num_attention_heads"] = 4
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, **shape, max_position_embeddings=LONGEST, pad_token_id=0, eos_token_id=1)
    )
    given = {
        "num_train_epochs": 1, "learning_rate": 3e-3, "max_length": LONGEST, "eval_strategy": "no",
        "per_device_train_batch_size": BATCH, "per_device_eval_batch_size": 8, "save_steps": 10**6,
    }  # fmt: skip
    os.chdir(folder)
    budget = BATCH * sum(len(row["input_ids"]) for row in rows) // len(rows)
    if kind == "packed":
        rows = packed(rows, budget)
        given["per_device_train_batch_size"] = 1
    args = configured(SFTConfig, Stage("sft"), given)
    args.logging_steps = 1000
    settings = {
        "model": model, "args": args, "processing_class": tokenizer(),
        "train_dataset": Dataset.from_list(rows), "eval_dataset": Dataset.from_list(held_out),
    }  # fmt: skip
    if kind == "TRL":
        utils._use_triton = USE_TRITON
        made = SFTTrainer(**settings)
        made.remove_callback(PrinterCallback)
        return made
    if kind == "packed":
        settings["data_collator"] = collator_of_packs(0, as_one_row=False)
    lengths, ids = [len(row["input_ids"]) for row in rows], [row["id"] for row in rows]
    tokens = budget if kind == "tokens" else None
    return stage_trainer(SFTTrainer)(**settings, lengths=lengths, ids=ids, batch_tokens=tokens)


def same_loss(rows: list[dict[str, Any]]) -> None:
    """TRL's and our losses and gradients of one batch, apart and packed, or an AssertionError."""
    found = {}
    for kind in ("TRL", "rows", "packed"):
        with tempfile.TemporaryDirectory() as folder:
            made = trainer(kind, rows, rows, folder)
            batch = packed(rows[:BATCH], LONGEST) if kind == "packed" else rows[:BATCH]
            loss = made.compute_loss(made.model.train(), made.data_collator(batch))
            loss.backward()
            found[kind] = loss.item(), [p.grad for p in made.model.parameters()]
    theirs, their_gradients = found.pop("TRL")
    for kind, (mine, my_gradients) in found.items():
        apart = max((a - b).abs().max().item() for a, b in zip(their_gradients, my_gradients, strict=True))
        print(f"one batch: loss {theirs:.6f} in TRL, {mine:.6f} here, {kind}; gradients differ by at most {apart:.1e}")
        assert abs(theirs - mine) < 1e-5 and apart < 1e-5


def epoch(kind: str, rows: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> tuple[float, int, float]:
    """CPU seconds of training an epoch, its steps, and the held-out loss after it."""
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(kind, rows, held_out, folder)
        start = time.process_time()
        made.train()
        seconds = time.process_time() - start
        return seconds, made.state.global_step, made.evaluate()["eval_loss"]


def main() -> None:
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    rows, held_out = rows_of(ROWS, 1), rows_of(HELDOUT, 2)
    lengths = [len(row["input_ids"]) for row in rows]
    middle = f"median {median(lengths):.0f}, mean {fmean(lengths):.0f}"
    print(f"{ROWS} rows of {min(lengths)} to {max(lengths)} tokens, {middle}")
    same_loss(rows)
    names = {
        "TRL": f"TRL {trl.__version__} SFTTrainer",
        "rows": f"ours, {BATCH} rows a step",
        "tokens": f"ours, {BATCH * sum(lengths) // ROWS} tokens a step",
        "packed": "ours, the same packed",
    }
    theirs: dict[str, float] = {}
    for kind, name in names.items():
        seconds, steps, loss = epoch(kind, rows, held_out)
        theirs = theirs or {"seconds": seconds, "loss": loss}
        print(
            f"{name:24} {sum(lengths) / seconds:6.0f} useful tokens per CPU s  {theirs['seconds'] / seconds:.2f}x"
            f"   {steps} steps, held-out loss {loss:.3f}",
            flush=True,
        )
        assert kind == "rows" or loss < theirs["loss"] + 0.1, "batches of equal tokens learned less"


if __name__ == "__main__":
    here = Path.cwd()
    main()
    os.chdir(here)
