"""DPO on rankings of four answers: CPU seconds of the stage's trainer with share_prompt and of TRL's DPOTrainer.

Prompts are three times as long as answers, all six pairs of a prompt are trained, two epochs. Both compute the
reference once (TRL: precompute_ref_log_probs), and that is counted; imports and tokenization are not. Equal model,
pairs per step, optimiser, precision; one thread. First both must give one batch equal losses and gradients.

Run     python -m benchmarks.dpo_shared_prompt            (one core: about three minutes)
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import datasets
import torch
import trl
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer import utils
from trl.trainer.dpo_trainer import DataCollatorForPreference

from benchmarks.reward_training import END, LIKED, PAD, VOCABULARY, tokenizer
from tasks.lib.dpo.pairs import rows_by_prompt
from tasks.lib.dpo.shared_prompt import with_shared_batches, with_shared_prompts
from tasks.lib.stage import Stage
from tasks.lib.training.hf_trainer import stage_trainer
from tasks.lib.training.trainer_config import configured

K, PROMPT, ANSWER, TRAIN, HELDOUT, PAIRS_PER_STEP = 4, 48, 16, 64, 32, 12
USE_TRITON = utils._use_triton  # what TRL scores without ours


def pairs_of(prompts: int, seed: int) -> list[dict[str, Any]]:
    """All pairs of the answers to random prompts; the better answer has more of the liked tokens."""
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(prompts):
        prompt = [draw.randrange(34, VOCABULARY) for _ in range(PROMPT)]
        answers = []
        for liked in sorted(draw.sample(range(ANSWER), K), reverse=True):
            answer = [draw.choice(LIKED) for _ in range(liked)]
            answer += [draw.randrange(34, VOCABULARY) for _ in range(ANSWER - 1 - liked)]
            draw.shuffle(answer)
            answers.append([*answer, END])
        for chosen, rejected in combinations(answers, 2):
            ids = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
            rows.append({"row": len(rows), "id": str(len(rows)), "key": str(number), **ids})
    return rows


def trainer(kind: str, rows: list[dict[str, Any]], held_out: list[dict[str, Any]], folder: str) -> Any:
    """TRL's trainer or ours, from equal weights; the reference's log-probabilities are computed here."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}
    shape["num_attention_heads"] = 4
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, **shape, max_position_embeddings=128, pad_token_id=PAD, eos_token_id=END)
    )
    given = {
        "num_train_epochs": 2, "learning_rate": 3e-4, "precompute_ref_log_probs": True, "eval_strategy": "no",
        "per_device_train_batch_size": PAIRS_PER_STEP, "save_steps": 10**6,
    }  # fmt: skip
    os.chdir(folder)
    args = configured(DPOConfig, Stage("dpo"), given)
    args.logging_steps = 1000
    settings = {
        "model": model, "args": args, "processing_class": tokenizer(),
        "train_dataset": Dataset.from_list(rows), "eval_dataset": Dataset.from_list(held_out),
    }  # fmt: skip
    if kind == "TRL":
        utils._use_triton = USE_TRITON
        Tokenized = type("Tokenized", (DPOTrainer,), {"_prepare_dataset": lambda self, data, *_: data})
        made = Tokenized(**settings)
        made.remove_callback(PrinterCallback)
        return made
    return stage_trainer(with_shared_prompts(DPOTrainer))(
        **settings, data_collator=with_shared_batches(DataCollatorForPreference(PAD)), groups=rows_by_prompt(rows),
        lengths=[PROMPT + ANSWER] * len(rows), ids=[row["id"] for row in rows],
    )  # fmt: skip


def same_gradients(rows: list[dict[str, Any]]) -> None:
    """Losses and gradients of one batch, a step away from the reference, or an AssertionError."""
    results = {}
    for kind in ("TRL", "ours"):
        with tempfile.TemporaryDirectory() as folder:
            made = trainer(kind, rows, rows, folder)
            chance = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in made.model.parameters():
                    parameter += 0.01 * torch.randn(parameter.shape, generator=chance)
            batch = made.data_collator([made.train_dataset[row] for row in range(PAIRS_PER_STEP)])
            loss = made.compute_loss(made.model.train(), batch)
            loss.backward()
            results[kind] = loss.item(), [p.grad for p in made.model.parameters()]
    their_loss, their_gradients = results["TRL"]
    our_loss, our_gradients = results["ours"]
    apart = max((a - b).abs().max().item() for a, b in zip(their_gradients, our_gradients, strict=True))
    largest = max(gradient.abs().max().item() for gradient in their_gradients)
    print(f"one batch: loss {their_loss:.6f} in TRL, {our_loss:.6f} here")
    print(f"gradients differ by at most {apart:.1e}, the largest is {largest:.2g}")
    assert abs(their_loss - our_loss) < 1e-4 and apart < 1e-4


def main() -> None:
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"
    rows, held_out = pairs_of(TRAIN, 1), pairs_of(HELDOUT, 2)
    print(f"{TRAIN} prompts of {PROMPT} tokens, {K} answers of {ANSWER}: {len(rows)} pairs, two epochs")
    same_gradients(rows[: 2 * PAIRS_PER_STEP])
    taken = {}
    for kind, name in (("TRL", f"TRL {trl.__version__} DPOTrainer"), ("ours", "ours, prompt shared")):
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            made = trainer(kind, rows, held_out, folder)
            reference = time.process_time() - start
            made.train()
            taken[kind] = time.process_time() - start
            figures = made.evaluate()
            losses = fmean(entry["train_loss"] for entry in made.state.log_history if "train_loss" in entry)
        print(
            f"{name:22} {taken[kind]:6.1f} CPU s, {reference:.1f} of them before the first step;"
            f" {made.state.global_step} steps, mean loss {losses:.3f},"
            f" held-out pairs right {figures['eval_rewards/accuracies']:.3f}",
            flush=True,
        )
    print(f"ratio                  1 : {taken['TRL'] / taken['ours']:.1f}")


if __name__ == "__main__":
    here = Path.cwd()
    main()
    os.chdir(here)
