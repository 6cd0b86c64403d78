"""A classifier reads a row alike whatever stands beside it, and trains what its method says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_llama, tiny_tokenizer, write_encoder, write_model

from tasks.lib.finetuning.adapters import count_trainable
from tasks.lib.finetuning.classifier import (
    collator_of_texts,
    load_classifier,
    predicted,
    prepare_classifier,
    room,
    summed_loss,
    token_ids,
)
from tasks.lib.models.batches import left_pad, right_pad
from tasks.lib.models.loading import save_model
from tasks.lib.stage import Problem

LABELS = ["cold", "warm"]
TEXTS = ["red", "a large round old fast slow warm cold one", "blue green", "small new red"]
MODELS = ["llama", "bert", "roberta"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    write_model(root / "llama")
    for kind in ("bert", "roberta"):
        write_encoder(root / kind, kind)
    return {kind: root / kind for kind in MODELS}


def outputs(model: Any, padded: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    ids, is_token = padded
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=is_token.long()).logits


@pytest.mark.parametrize("kind", MODELS)
def test_the_rows_beside_a_row_do_not_change_its_outputs(folders: dict[str, Path], kind: str) -> None:
    model, tokenizer, _ = load_classifier(folders[kind], LABELS, "full", 0)
    rows = token_ids(tokenizer, TEXTS)
    alone = torch.cat([outputs(model, right_pad([ids], 0)) for ids in rows])
    assert not torch.allclose(alone[0], alone[1], atol=1e-4)  # they are not all the same
    torch.testing.assert_close(predicted(model, rows, batch_size=4), alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(predicted(model, rows, batch_size=3), alone, atol=1e-5, rtol=0)


def test_a_decoder_reads_the_last_token_whatever_the_side_of_the_padding(folders: dict[str, Path]) -> None:
    model, tokenizer, _ = load_classifier(folders["llama"], LABELS, "full", 0)
    rows, pad = token_ids(tokenizer, TEXTS), model.config.pad_token_id
    right, left = outputs(model, right_pad(rows, pad)), outputs(model, left_pad(rows, pad))
    torch.testing.assert_close(left, right, atol=1e-5, rtol=0)
    states = model.model(input_ids=torch.tensor([rows[1]])).last_hidden_state
    torch.testing.assert_close(right[1], model.score(states[0, -1]), atol=1e-5, rtol=0)


def test_a_decoder_without_pad_token_is_padded_all_the_same(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    save_model(tiny_llama(tokenizer), tokenizer, tmp_path / "m")
    model, tokenizer, _ = load_classifier(tmp_path / "m", LABELS, "full", 0)
    rows = token_ids(tokenizer, TEXTS)
    alone = torch.cat([outputs(model, right_pad([ids], 0)) for ids in rows])
    torch.testing.assert_close(predicted(model, rows, batch_size=4), alone, atol=1e-5, rtol=0)


def test_a_special_token_written_in_a_text_is_text(folders: dict[str, Path]) -> None:
    """It would move the place that a decoder reads, or end a BERT's text."""
    for kind in MODELS:
        _, tokenizer, _ = load_classifier(folders[kind], LABELS, "full", 0)
        plain, written = token_ids(tokenizer, ["red", f"red {tokenizer.pad_token}"])
        assert tokenizer.pad_token_id not in written and len(written) > len(plain) + 1


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", ["full", "lora", "head"])
def test_a_method_trains_what_it_says(folders: dict[str, Path], kind: str, method: Any) -> None:
    """Llama: a linear head of 2 x 16. BERT: pooler 16 x 17, classifier 2 x 17. RoBERTa: dense 16 x 17 and 2 x 17."""
    model, _, new = load_classifier(folders[kind], LABELS, method, 0)
    everything, head = count_trainable(model), sum(model.get_parameter(name).numel() for name in new)
    assert head == (32 if kind == "llama" else 16 * 17 + 2 * 17)
    before = outputs(model, right_pad([[5, 6, 7]], 0))
    adapted = prepare_classifier(model, method, {"r": 2} if method == "lora" else {}, new)
    torch.testing.assert_close(outputs(adapted, right_pad([[5, 6, 7]], 0)), before)
    linear = {  # of two layers, in + out, without the head
        "llama": 2 * (4 * (16 + 16) + 3 * (16 + 32)), "bert": 2 * (4 * (16 + 16) + 2 * (16 + 32)),
        "roberta": 2 * (4 * (16 + 16) + 2 * (16 + 32)),
    }  # fmt: skip
    assert count_trainable(adapted) == {"full": everything, "head": head, "lora": head + 2 * linear[kind]}[method]


def test_new_weights_depend_on_the_seed_and_the_body_is_the_given_one(folders: dict[str, Path]) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        return load_classifier(folders["bert"], LABELS, "full", seed)[0].state_dict()

    one, same, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert {name for name in one if not torch.equal(one[name], other[name])} == {
        "bert.pooler.dense.weight", "classifier.weight"}  # fmt: skip
    given = load_file(folders["bert"] / "model.safetensors")
    assert torch.equal(one["bert.embeddings.word_embeddings.weight"], given["bert.embeddings.word_embeddings.weight"])


def test_the_labels_are_in_the_configuration_and_an_earlier_head_is_replaced(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model, tokenizer, _ = load_classifier(folders["roberta"], LABELS, "full", 0)
    save_model(model, tokenizer, tmp_path / "two")
    model, _, new = load_classifier(tmp_path / "two", ["a", "b", "c"], "head", 0)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"} and model.config.num_labels == 3
    assert "classifier.out_proj.weight" in new and not any(name.startswith("roberta.") for name in new)


def test_a_body_that_lacks_a_tensor_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    model, tokenizer, _ = load_classifier(folders["bert"], LABELS, "full", 0)
    save_model(model, tokenizer, tmp_path / "cut")
    tensors = load_file(tmp_path / "cut/model.safetensors")
    del tensors["bert.encoder.layer.0.attention.self.query.weight"]
    save_file(tensors, tmp_path / "cut/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Problem, match=r"layer\.0\.attention\.self\.query\.weight is missing"):
        load_classifier(tmp_path / "cut", LABELS, "full", 0)


def test_roberta_has_two_positions_less_than_its_table(folders: dict[str, Path]) -> None:
    """Its positions begin behind the pad id, 1."""
    lengths = {kind: room(load_classifier(folders[kind], LABELS, "full", 0)[0]) for kind in MODELS}
    assert lengths == {"llama": 64, "bert": 64, "roberta": 62}
    model, _, _ = load_classifier(folders["roberta"], LABELS, "full", 0)
    outputs(model, right_pad([[5] * 62], 1))  # the longest fits


def test_the_loss_is_the_mean_over_the_effective_batch() -> None:
    """Two batches of one step, 2 + 1 rows: their losses add up to the mean over 3."""
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    labels, loss = torch.tensor([0, 0, 1]), summed_loss()

    def part(rows: slice) -> torch.Tensor:
        return loss(Outputs(logits[rows]), labels[rows], num_items_in_batch=3)

    whole = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(part(slice(0, 2)) + part(slice(2, 3)), whole)
    torch.testing.assert_close(loss(Outputs(logits), labels), whole)
    squared = loss(Outputs(torch.tensor([[1.0], [3.0]])), torch.tensor([0.0, 1.0]))
    assert squared.item() == (1 + 4) / 2


class Outputs:
    """What a model returns."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


def test_a_batch_is_padded_on_the_right_with_labels_of_their_kind() -> None:
    batch = collator_of_texts(9)([{"input_ids": [1, 2], "labels": 1}, {"input_ids": [3], "labels": 0}])
    assert batch["input_ids"].tolist() == [[1, 2], [3, 9]] and batch["attention_mask"].tolist() == [
        [1, 1],
        [1, 0],
    ]
    assert batch["labels"].dtype == torch.int64
    assert collator_of_texts(9)([{"input_ids": [1], "labels": 0.5}])["labels"].dtype == torch.float32


def test_settings_that_fit_no_method_are_a_problem(folders: dict[str, Path]) -> None:
    model, _, new = load_classifier(folders["bert"], LABELS, "full", 0)
    with pytest.raises(Problem, match=r"classify\.lora\.rank is not a key of LoraConfig"):
        prepare_classifier(model, "lora", {"rank": 4}, new)
