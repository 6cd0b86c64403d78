"""The classes of what a model knows, on answers that are known to be right or wrong."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from tiny_models import instruction, tiny_llama, tiny_tokenizer

from tasks.lib.finetuning.base_knowledge import class_of, known_facts


@pytest.mark.parametrize(
    ("greedy", "sampled", "expected"),
    [
        ([True, True], [False], "highly_known"),
        ([True, False], [True], "maybe_known"),
        ([False, False], [False, True], "weakly_known"),
        ([False], [False], "unknown"),
    ],
)
def test_a_fact_has_the_class_of_the_paper(greedy: list[bool], sampled: list[bool], expected: str) -> None:
    assert class_of(greedy, sampled) == expected


def test_a_model_that_always_says_red_knows_the_facts_whose_answer_is_red() -> None:
    """The head answers ` red` after anything else, and EOS after ` red`."""
    tokenizer = tiny_tokenizer()
    model = tiny_llama(tokenizer).eval()
    answer = [*tokenizer.encode(" red", add_special_tokens=False), tokenizer.eos_token_id]
    following = dict(pairwise(answer))

    def forward(ids: torch.Tensor, **_: object) -> object:
        logits = torch.full((ids.shape[0], 1, len(tokenizer)), -100.0)
        for row, last in enumerate(ids[:, -1].tolist()):
            logits[row, 0, following.get(last, answer[0])] = 100.0
        return original(ids, **_) | {"logits": logits}

    original = model.forward
    model.forward = forward
    rows = [instruction(number) for number in range(12)]
    red = sum(row["answer"] == "red" for row in rows)
    found = known_facts(model, tokenizer, rows, 12, batch_size=4, seed=0)
    assert found["facts"] == 12 and found["highly_known"] == pytest.approx(red / 12)
    assert found["unknown"] == pytest.approx(1 - red / 12)
    assert known_facts(model, tokenizer, rows, 0, batch_size=4, seed=0) == {}
