"""What TRL's PPOTrainer computes, and what it costs, on samples that are given to it.

TRL 1.12 is the last version with PPO and cannot be installed with ours, so this file runs in its own environment:

    python -m venv VENV; VENV/bin/pip install torch==2.13.0 trl==1.12.0
    VENV/bin/python benchmarks/trl_ppo.py tests/lib/rl/trl_ppo_case.json tests/lib/rl/trl_ppo_figures.json

The case: {shape, prompts, answers, settings, iterations}. Answers are padded with 0 to one length; EOS is 1.
TRL samples as it always does, and the samples are then replaced by the given ones. Weights come from `tiny`.
`benchmarks/ppo_step.py` and `tests/lib/rl/test_trl_ppo.py` compare ours with the output.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

SEEDS = {"policy": 1, "reference": 2, "reward": 3, "critic": 4}


def tiny(kind: Any, seed: int, shape: dict[str, Any]) -> Any:
    """A Llama whose weights are the same in every environment: normals drawn tensor by tensor, by name."""
    settings = {**shape, "pad_token_id": 0, "eos_token_id": 1, "num_labels": 1}
    model = kind(LlamaConfig(**settings)).eval()
    chance = torch.Generator().manual_seed(seed)
    spread = 1.2 / shape["hidden_size"] ** 0.5
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.copy_(spread * torch.randn(parameter.shape, generator=chance))
    return model


def four_models(shape: dict[str, Any]) -> dict[str, Any]:
    kinds = {"reward": LlamaForSequenceClassification, "critic": LlamaForSequenceClassification}
    models = {}
    for name, seed in SEEDS.items():
        models[name] = tiny(kinds.get(name, LlamaForCausalLM), seed, shape)
    return models


def sizes(model: Any) -> dict[str, float]:
    """The sum of absolute values of each tensor: a fingerprint that two environments can compare."""
    return {name: float(p.detach().double().abs().sum()) for name, p in model.named_parameters()}


def run_trl(case: dict[str, Any]) -> dict[str, Any]:
    """`iterations` of PPOTrainer.train; figures of the first, CPU seconds of each."""
    import trl
    from datasets import Dataset
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as tokenizer_models
    from transformers import PreTrainedTokenizerFast
    from trl.experimental import ppo
    from trl.experimental.ppo import ppo_trainer

    words = {f"t{number}": number for number in range(case["shape"]["vocab_size"])}
    whole = Tokenizer(tokenizer_models.WordLevel(words, unk_token="t2"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, pad_token="t0", eos_token="t1", padding_side="left")
    orders: list[list[int]] = []
    starts: list[float] = []
    whitened: list[dict[str, Any]] = []
    generate, whiten = ppo_trainer.batch_generation, ppo_trainer.masked_whiten
    temperature = case["settings"]["temperature"] + 1e-7

    @torch.no_grad()
    def injected(model: Any, queries: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        starts.append(time.process_time())
        generate(model, queries, *rest)
        paused = time.process_time()  # what the injection needs is no cost of TRL's
        order = []  # the number in the case of each of TRL's rows
        for row in queries.tolist():
            order.append(case["prompts"].index([token for token in row if token != 0]))
        orders.append(order)
        ids = torch.cat([queries, torch.tensor(case["answers"])[order]], 1)
        logits = ppo_trainer.forward(model, ids, 0).logits[:, queries.shape[1] - 1 : -1] / temperature
        starts[-1] += time.process_time() - paused
        return ids, logits

    def seen_whiten(values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
        result = whiten(values, mask, shift_mean)
        whitened.append({"values": values.tolist(), "mask": mask.tolist(), "result": result.tolist()})
        return result

    ppo_trainer.batch_generation, ppo_trainer.masked_whiten = injected, seen_whiten
    models = four_models(case["shape"])
    rows, width = len(case["prompts"]), len(case["answers"][0])
    logged: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        config = ppo.PPOConfig(
            output_dir=folder, **case["settings"], response_length=width, stop_token="eos", num_mini_batches=1,
            per_device_train_batch_size=rows, gradient_accumulation_steps=1,
            local_rollout_forward_batch_size=rows, total_episodes=rows * case["iterations"],
            lr_scheduler_type="constant", num_sample_generations=0, save_strategy="no", use_cpu=True, bf16=False,
            gradient_checkpointing=False, report_to="none", disable_tqdm=True,
        )  # fmt: skip
        data = Dataset.from_list([{"input_ids": prompt} for prompt in case["prompts"]])
        trainer = ppo.PPOTrainer(
            args=config, processing_class=tokenizer, model=models["policy"], ref_model=models["reference"],
            reward_model=models["reward"], value_model=models["critic"], train_dataset=data, eval_dataset=data,
        )  # fmt: skip
        trainer.log = lambda metrics, *_: logged.append(metrics)
        trainer.train()
    starts.append(time.process_time())
    first = logged[0]
    first.pop("eps", None)
    return {
        "trl": trl.__version__, "torch": torch.__version__, "order": orders[0], "metrics": first,
        "advantages": whitened[0], "cpu_seconds": [b - a for a, b in pairwise(starts)],
        "policy": sizes(models["policy"]), "critic": sizes(models["critic"]),
    }  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = run_trl(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(found) + "\n")
