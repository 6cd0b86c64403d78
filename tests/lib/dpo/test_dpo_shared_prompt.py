"""A prompt that passes once for all answers of its pairs gives TRL the losses and gradients of whole sequences."""

from __future__ import annotations

import copy
from itertools import combinations
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_models import tiny_llama, tiny_tokenizer
from transformers import MistralConfig, MistralForCausalLM
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from tasks.lib.dpo.shared_prompt import shared_batch, with_shared_batches, with_shared_prompts
from tasks.lib.stage import Problem, Stage
from tasks.lib.training.trainer_config import configured


def answer(prompt: int, length: int) -> list[int]:
    """So many tokens, different for every prompt and length, and EOS."""
    return [100 + (prompt + 13 * (length - 1) + i) % 90 for i in range(length)] + [1]


def pairs_of(prompts: int = 3, answers: int = 4) -> list[dict[str, Any]]:
    """All pairs of so many answers of 1 to 4 tokens, to prompts of 4 and more."""
    rows = []
    for number in range(prompts):
        prompt = [10 + (7 * number + i) % 90 for i in range(4 + 5 * number)]
        to_prompt = [answer(number, length) for length in range(1, answers + 1)]
        for chosen, rejected in combinations(to_prompt, 2):
            rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    return rows


def trainer(model: Any, rows: list[dict[str, Any]], **given: Any) -> Any:
    config = configured(DPOConfig, Stage("dpo"), {"precompute_ref_log_probs": True, "eval_strategy": "no", **given})
    data = [{"row": i, **row} for i, row in enumerate(rows)]
    Trainer = type("Trainer", (with_shared_prompts(DPOTrainer),), {"_prepare_dataset": lambda self, data, *_: data})
    return Trainer(
        model=model, args=config, processing_class=tiny_tokenizer(), train_dataset=Dataset.from_list(data),
        eval_dataset=None, data_collator=with_shared_batches(DataCollatorForPreference(0)),
    )  # fmt: skip


def test_every_answer_follows_the_prompt_once() -> None:
    """The last prompt token (7) begins each branch: it predicts the answers' first tokens."""
    pairs = [{"prompt_ids": [5, 6, 7], "chosen_ids": [1], "rejected_ids": [2, 3]}]
    pairs.append({"prompt_ids": [5, 6, 7], "chosen_ids": [2, 3], "rejected_ids": [1]})
    batch = {key: tensor.tolist() for key, tensor in shared_batch(pairs, width=5).items()}
    assert batch == {
        "ids": [[5, 6, 7, 1, 7, 2, 3]],
        "positions": [[0, 1, 2, 3, 2, 3, 4]],
        "branch": [[0, 0, 1, 1, 2, 2, 2]],
        "labels": [[-100, -100, 1, -100, 2, 3, -100]],
        "places": [[-1, -1, 2, -1], [-1, -1, 4, 5], [-1, -1, 4, 5], [-1, -1, 2, -1]],
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("loss", [["sigmoid"], ["ipo"], ["sigmoid", "sft"]])
def test_loss_and_gradients_are_those_of_trl(workspace: Any, attention: str, loss: list[str]) -> None:
    rows = pairs_of()
    model = tiny_llama(tiny_tokenizer())
    model.set_attn_implementation(attention)
    made = trainer(model, rows, loss_type=loss, beta=0.5, use_weighting=loss == ["ipo"])
    with torch.no_grad():  # away from the reference
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    results: list[Any] = []
    for together in (True, False):
        batch = made._prepare_inputs(made.data_collator(list(made.train_dataset)))
        if not together:
            batch.pop("shared")  # what TRL does
        model.zero_grad()
        value = made.compute_loss(model.train(), batch)
        value.backward()
        figures = {key: values.pop() for key, values in made._metrics["train"].items()}
        results.append((value.item(), figures, [p.grad.clone() for p in model.parameters()]))
    (ours, our_figures, our_gradients), (theirs, their_figures, their_gradients) = results
    assert ours == pytest.approx(theirs, abs=1e-5)
    names = [name for name in our_figures if name != "num_tokens"]
    assert [our_figures[n] for n in names] == pytest.approx([their_figures[n] for n in names], abs=1e-4)
    assert max(g.abs().max() for g in their_gradients) > 1e-2
    for a, b in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_reference_log_probabilities_are_those_of_trl(workspace: Any) -> None:
    rows, model = pairs_of(), tiny_llama(tiny_tokenizer())
    made = trainer(copy.deepcopy(model), rows)
    config = configured(DPOConfig, Stage("dpo"), {"precompute_ref_log_probs": True, "eval_strategy": "no"})
    UntokenizedTrainer = type("UntokenizedTrainer", (DPOTrainer,), {"_prepare_dataset": lambda self, data, *_: data})
    plain = UntokenizedTrainer(
        model=model, args=config, processing_class=tiny_tokenizer(), train_dataset=Dataset.from_list(rows)
    )
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        assert list(made.train_dataset[name]) == pytest.approx(list(plain.train_dataset[name]), abs=1e-4)


def test_a_model_that_reads_a_shared_prompt_otherwise_is_refused(workspace: Any) -> None:
    """A window of 8 tokens: with positions of its own, the mask is not the model's."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = MistralForCausalLM(
        MistralConfig(vocab_size=300, **shape, num_key_value_heads=2, sliding_window=8, initializer_range=0.5)
    )
    with pytest.raises(Problem, match="mistral does not read a shared prompt as it reads whole sequences"):
        trainer(model, pairs_of())
    model = tiny_llama(tiny_tokenizer())
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(Problem, match="flash_attention_2 takes no custom mask"):
        trainer(model, pairs_of())
