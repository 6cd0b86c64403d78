"""dpo: direct preference optimisation (2305.18290) of the SFT model on rankings, or KTO (2402.01306).

Reads   models/sft, data/preferences/{train,heldout}.parquet (with `thumbs` ratings_{train,heldout}.parquet),
        reports/check/rankings.json
Writes  models/dpo, reports/dpo.json, reports/plots/dpo.csv, reports/plots/dpo.png
Run     python -m tasks.dpo
"""

from __future__ import annotations

import math
import shutil
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from tasks.lib.data.prompts import prompt_key
from tasks.lib.data.rows import content_id, read_parquet
from tasks.lib.dpo.kto_labels import labels_of_pairs, labels_of_ratings, mismatched, unpaired_ids
from tasks.lib.dpo.reference_cache import caching
from tasks.lib.dpo.shared_pairs import collator, sharing
from tasks.lib.finetuning.lora import lora_config
from tasks.lib.models.chat import all_answer_ids, all_prompt_ids, load_tokenizer
from tasks.lib.models.generation import generate
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.models.logprobs import answer_logprobs
from tasks.lib.models.model_folder import weights_hash
from tasks.lib.plots import curves
from tasks.lib.settings.dpo import Params
from tasks.lib.stage import Problem, Stage, file_hash, main
from tasks.lib.training.distributed import is_first
from tasks.lib.training.hf_trainer import curve, stage_trainer, train
from tasks.lib.training.launching import under_launcher
from tasks.lib.training.sharded import gathered, loading_place
from tasks.lib.training.trainer_config import configured

SFT, OUT = Path("models/sft"), Path("models/dpo")
TRAIN, HELD_OUT = Path("data/preferences/train.parquet"), Path("data/preferences/heldout.parquet")
FIGURES = {
    "loss": "loss",
    "eval_loss": "heldout_loss",
    "rewards/accuracies": "accuracy",
    "eval_rewards/accuracies": "heldout_accuracy",
    "rewards/margins": "margin",
    "eval_rewards/margins": "heldout_margin",
    "logps/chosen": "logp_chosen",
    "logps/rejected": "logp_rejected",
}


def run(params: Params, stage: Stage) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    # 1. Settings first: a wrong one should not cost a minute.
    once = {"precompute_ref_log_probs": True} if params.share_prompt else {}
    is_kto = params.method == "kto"
    config = configured(KTOConfig if is_kto else DPOConfig, stage, params.trainer, eval_on_start=True, **once)
    lora = None
    if params.lora is not None:
        lora = lora_config("dpo.lora", params.lora, task_type="CAUSAL_LM")

    # 2. Rankings become pairs, pairs become ids. A pair that is too long is dropped, never cut.
    tokenizer, model = load_tokenizer(SFT), load_policy(SFT, on=loading_place())
    rows_of = labelled if is_kto else paired
    rows, too_long, facts = rows_of(tokenizer, TRAIN, params, config.max_length)
    held_out, held_out_too_long, _ = rows_of(tokenizer, HELD_OUT, params, config.max_length)
    what = "answers" if is_kto else "pairs"
    print(f"dpo: {len(rows)} {what}; {too_long} dropped, longer than {config.max_length} tokens", flush=True)

    # 3. Train. The reference is the SFT model: itself, or the policy with its adapter off.
    torch.manual_seed(stage.seed_of("adapter"))
    own_reference = lora is None and not config.precompute_ref_log_probs
    batches: dict[str, Any] = {}
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if is_kto:
        batches = {"data_collator": mismatched(DataCollatorForUnpairedPreference(pad))}
    if params.share_prompt:
        batches = {"data_collator": collator(DataCollatorForPreference(pad)), "groups": groups_of(rows)}
    Trainer: Any = KTOTrainer if is_kto else DPOTrainer
    weights = weights_hash(SFT)
    if config.precompute_ref_log_probs:
        Trainer = caching(DPOTrainer)
        batches["reference"] = {"weights": weights, "share_prompt": params.share_prompt}
    if params.share_prompt:
        Trainer = sharing(Trainer)
    trainer = stage_trainer(Trainer)(
        model=model,
        ref_model=load_policy(SFT, on=loading_place()) if own_reference else None,
        args=config,
        processing_class=tokenizer,
        peft_config=lora,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(held_out),
        lengths=[length_of(row) for row in rows],
        ids=[row["id"] for row in rows],
        first_loss=first_loss(config),
        **batches,
    )
    files = [ratings_of(path) if params.thumbs else path for path in (TRAIN, HELD_OUT)]
    inputs = {str(SFT): weights, **{str(path): file_hash(path) for path in files}}
    fingerprint = {"params": params.model_dump(), "seed": stage.seed, "inputs": inputs}
    shown = {"loss": "loss", "rewards/margins": "margin", "eval_rewards/accuracies": "held-out accuracy"}
    log = train(trainer, stage, fingerprint, shown)
    steps = curve(log, FIGURES)

    # 4. Save, and measure what was saved.
    model = gathered(trainer, lambda: _fresh(lora))
    if not is_first():
        return
    save_model(model.merge_and_unload() if lora else model, tokenizer, OUT)
    last = [row for row in steps if "heldout_loss" in row][-1]
    trained = [row for row in steps if "loss" in row]
    report: dict[str, Any] = {
        what: len(rows),
        **facts,
        f"{what}_too_long": too_long,
        f"heldout_{what}": len(held_out),
        f"heldout_{what}_too_long": held_out_too_long,
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "loss_first": trained[0]["loss"],
        "loss_last": mean(row["loss"] for row in trained[-20:]),
        **_last_of(trained, "accuracy", "margin"),  # kto: no accuracy, and no margin of a batch of one kind
        **{n: last[n] for n in ("heldout_loss", "heldout_accuracy", "heldout_margin") if n in last},
        **drift(tokenizer, held_out, params, stage),
    }
    panels = {
        "Loss": ["loss", "heldout_loss"],
        **({} if is_kto else {"Pairs in the right order": ["accuracy", "heldout_accuracy"]}),
        "Margin (beta x log-ratio)": ["margin", "heldout_margin"],
        "Log-probability of the answer": ["logp_chosen", "logp_rejected"],
    }
    curves(Path("reports/plots/dpo"), steps, "step", panels)
    stage.report(report)
    shutil.rmtree(stage.checkpoints, ignore_errors=True)


def _fresh(lora: Any) -> Any:
    """The SFT model on the CPU, with adapters if they are what is trained."""
    from peft import get_peft_model

    policy = load_policy(SFT, on="cpu")
    return get_peft_model(policy, lora) if lora else policy


def _last_of(steps: list[dict[str, float]], *names: str) -> dict[str, float]:
    """The mean of figures over the last 20 steps that have them."""
    found = {name: [row[name] for row in steps if name in row][-20:] for name in names}
    return {f"{name}_last": mean(values) for name, values in found.items() if values}


def paired(
    tokenizer: Any, path: Path, params: Params, max_length: int | None
) -> tuple[list[dict[str, Any]], int, dict[str, int]]:
    """The pairs of a file of rankings as ids, how many were too long, and facts for the report."""
    pairs, facts = pairs_of(read_parquet(path), params.pairs_per_prompt)
    return *tokenised(tokenizer, pairs, max_length, path), facts


def labelled(
    tokenizer: Any, path: Path, params: Params, max_length: int | None
) -> tuple[list[dict[str, Any]], int, dict[str, int]]:
    """The good and bad answers of a file of rankings, or of its ratings by `thumbs`, as ids, and the same facts."""
    if params.thumbs:
        path = ratings_of(path)
        if not path.is_file():
            raise Problem(f"dpo.thumbs: {path} does not exist; name {params.thumbs} in preferences.attributes")
        rows = labels_of_ratings(read_parquet(path), params.thumbs)
    else:
        rows = labels_of_pairs(pairs_of(read_parquet(path), sys.maxsize)[0])
    found, too_long = unpaired_ids(tokenizer, rows, max_length)
    good = sum(row["label"] for row in found)
    if not 0 < good < len(found):
        raise Problem(f"{path}: kto needs good and bad answers, found {good} and {len(found) - good}")
    return found, too_long, {"desirable": good, "undesirable": len(found) - good}


def ratings_of(path: Path) -> Path:
    """The file of ratings beside a file of rankings."""
    return path.with_name(f"ratings_{path.name}")


def pairs_of(rankings: list[dict[str, Any]], per_prompt: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Pairs {prompt, chosen, rejected} that most annotators of a prompt agree on, and what was left out.

    Annotators vote on every two answers of a prompt; ties, and pairs without a majority, are left out.
    Kept are `per_prompt` of them with the answers that win most: two good answers teach more than a good one
    and nonsense, which the model would not say anyway; and every prompt weighs about the same.
    """
    prompts: dict[str, Any] = {}
    votes: dict[str, Counter[tuple[str, str]]] = {}
    for row in rankings:
        key = prompt_key(row["prompt"])
        prompts.setdefault(key, row["prompt"])
        count = votes.setdefault(key, Counter())
        for (a, rank_a), (b, rank_b) in combinations(zip(row["answers"], row["ranks"], strict=True), 2):
            better, worse = (a, b) if rank_a <= rank_b else (b, a)
            count[(better, worse) if rank_a != rank_b else ("", "")] += 1
    pairs, undecided = [], 0
    for key, count in votes.items():
        ties = count.pop(("", ""), 0)
        decided = [(a, b) for (a, b), n in count.items() if n > count.get((b, a), 0)]
        undecided += ties + sum(n == count.get((b, a), 0) for (a, b), n in count.items()) // 2
        wins = Counter(a for a, _ in decided)
        for a, b in sorted(decided, key=lambda pair: (-wins[pair[0]], -wins[pair[1]], pair))[:per_prompt]:
            pairs.append({"prompt": prompts[key], "chosen": a, "rejected": b})
    facts = {"prompts": len(votes), "annotators": len({row["annotator"] for row in rankings})}
    return pairs, facts | {"ties_and_draws": undecided}


def tokenised(
    tokenizer: Any, pairs: list[dict[str, Any]], max_length: int | None, path: Path
) -> tuple[list[dict[str, Any]], int]:
    """Pairs as the ids that TRL's collator takes, and how many were left out because they are too long."""
    rows: list[dict[str, Any]] = []
    encoded = {
        "prompt_ids": all_prompt_ids(tokenizer, [pair["prompt"] for pair in pairs]),
        "chosen_ids": all_answer_ids(tokenizer, [pair["chosen"] for pair in pairs]),
        "rejected_ids": all_answer_ids(tokenizer, [pair["rejected"] for pair in pairs]),
    }
    for number, pair in enumerate(pairs):
        ids = {name: column[number] for name, column in encoded.items()}
        if ids["chosen_ids"] == ids["rejected_ids"]:
            prompt = pair["prompt"][-1]["content"][:60]
            raise Problem(f"{path}: two answers to {prompt!r} are equal, but one is preferred; drop one")
        if max_length is None or length_of(ids) <= max_length:
            rows.append({"row": len(rows), "id": content_id(pair), "key": prompt_key(pair["prompt"]), **ids})
    if not rows:
        reason = f"all {len(pairs)} are longer than dpo.trainer.max_length = {max_length}"
        raise Problem(f"{path}: no pairs to use: {reason if pairs else 'there are only ties'}")
    return rows, len(pairs) - len(rows)


def length_of(row: dict[str, Any]) -> int:
    """Tokens of the sequence, or of the longer of the two."""
    if "completion_ids" in row:
        return len(row["prompt_ids"]) + len(row["completion_ids"])
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def groups_of(rows: list[dict[str, Any]]) -> list[list[int]]:
    """The numbers of the rows of each prompt."""
    found: dict[str, list[int]] = {}
    for row in rows:
        found.setdefault(row["key"], []).append(row["row"])
    return list(found.values())


def first_loss(config: Any) -> float | None:
    """What the loss must be at the start, where policy and reference are one: log 2 of dpo, 1/2 of kto; or None."""
    if not hasattr(config, "use_weighting"):
        return 0.5 if config.desirable_weight == config.undesirable_weight == 1 else None
    is_plain = config.loss_type == ["sigmoid"] and not config.label_smoothing and not config.use_weighting
    return math.log(2) if is_plain and not config.precompute_ref_log_probs else None


def drift(tokenizer: Any, held_out: list[dict[str, Any]], params: Params, stage: Stage) -> dict[str, float]:
    """KL(policy || SFT) in nats per answer, estimated on answers that the policy samples, and lengths."""
    prompts = list({tuple(row["prompt_ids"]): None for row in held_out})[: params.samples]
    if not prompts:
        return {}
    settings: dict[str, Any] = {
        "eos_id": tokenizer.eos_token_id,
        "pad_id": tokenizer.pad_token_id,
        "max_new_tokens": params.max_new_tokens,
        "temperature": 1.0,
        "batch_size": 64,
        "seed": stage.seed_of("drift"),
    }
    policy, reference = load_policy(OUT), load_policy(SFT)
    answers = generate(policy, prompts, **settings)
    ratios = [
        (a - b).sum().item()
        for a, b in zip(
            answer_logprobs(policy, prompts, answers, batch_size=64),
            answer_logprobs(reference, prompts, answers, batch_size=64),
            strict=True,
        )
    ]
    return {
        "kl": mean(ratios),
        "answer_tokens": mean(map(len, answers)),
        "answer_tokens_sft": mean(map(len, generate(reference, prompts, **settings))),
    }


if __name__ == "__main__":
    main(__file__, Params, under_launcher(run))
