"""Samples that share a row are trained as if each were alone, whatever computes the attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny_llama, tiny_tokenizer
from torch.nn import functional as F
from transformers import BloomConfig, BloomForCausalLM, MistralConfig, MistralForCausalLM

from tasks.lib.finetuning.packing import (
    collator_of_packs,
    packed,
    packs,
    refuse_unless_apart,
    use_attention,
)
from tasks.lib.models.chat import IGNORED
from tasks.lib.stage import Problem


def rows_of(*lengths: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    found = []
    for number, length in enumerate(lengths):
        ids = torch.randint(5, 300, (length,)).tolist()
        labels = [IGNORED] * (length // 3) + ids[length // 3 :]
        found.append({"row": number, "id": f"row-{number}", "input_ids": ids, "labels": labels})
    return found


def tiny(kind: str) -> torch.nn.Module:
    if kind == "llama":
        return tiny_llama(tiny_tokenizer()).eval()
    torch.manual_seed(0)
    if kind == "bloom":
        return BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=16, n_layer=1, n_head=2)).eval()
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=300, **shape, num_key_value_heads=2, head_dim=8, sliding_window=4)
    return MistralForCausalLM(config).eval()


def loss(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    labels = inputs.pop("labels")
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=IGNORED)


def trained_tokens(row: dict[str, Any]) -> int:
    """How many tokens of a row are predicted and trained: the first has nothing before it."""
    return len(row["labels"]) - 1 - row["labels"][1:].count(IGNORED)


def test_a_row_goes_where_least_room_is_left() -> None:
    """7 opens a pack, 5 another; 3 fits the first without room, 4 the second; 2 opens a third."""
    assert packs([3, 7, 5, 4, 2], 10) == [[1, 0], [2, 3], [4]]
    assert packs([1] * 25, 10) == [[*range(10)], [*range(10, 20)], [*range(20, 25)]]
    with pytest.raises(Problem, match="11 tokens does not fit a pack of 10"):
        packs([11], 10)


def test_positions_start_anew_and_the_first_token_of_a_sample_is_not_trained() -> None:
    rows = [{"row": i, "id": "ab"[i], "input_ids": [10 + i] * n, "labels": [10 + i] * n} for i, n in enumerate((2, 3))]
    (pack,) = packed(rows, 6)
    assert pack["id"] == "b + a" and pack["lengths"] == [3, 2]
    batch = collator_of_packs(0, as_one_row=False)([pack, rows[0]])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 11, 11, IGNORED, 10], [10, 10, *[IGNORED] * 3]]
    one = collator_of_packs(0, as_one_row=True)([pack, rows[0]])
    assert one["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1]]


@pytest.mark.parametrize("as_one_row", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "mistral"])  # mistral: a window of four tokens
def test_loss_and_gradients_are_those_of_samples_alone(kind: str, attention: str, as_one_row: bool) -> None:
    model = tiny(kind)
    use_attention(model, attention)
    rows = rows_of(9, 20, 4, 7, 13, 6)
    trained = [trained_tokens(row) for row in rows]
    alone = collator_of_packs(0, as_one_row=False)
    whole = torch.zeros(())
    for row, count in zip(rows, trained, strict=True):
        whole += loss(model, alone([row])) * count / sum(trained)
    whole.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    together = packed(rows, 32)
    assert [len(pack["lengths"]) for pack in together] == [2, 4]
    found = loss(model, collator_of_packs(0, as_one_row=as_one_row)(together))
    found.backward()
    assert found.item() == pytest.approx(whole.item(), abs=1e-5)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-5)
    refuse_unless_apart(model, together[0])


def test_a_model_that_cannot_keep_samples_apart_is_refused() -> None:
    with pytest.raises(Problem, match="bloom lets the samples of a row see each other"):
        refuse_unless_apart(tiny("bloom"), packed(rows_of(9, 20), 32)[0])


def test_attention_that_is_not_there_is_named() -> None:
    with pytest.raises(Problem, match=r"sft\.attention: quick cannot be used"):
        use_attention(tiny("llama"), "quick")
