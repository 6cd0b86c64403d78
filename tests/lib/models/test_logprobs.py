"""Log-probabilities of answers do not depend on padding, order or batch."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_llama, tiny_tokenizer

from tasks.lib.models.batches import left_pad, position_ids
from tasks.lib.models.logprobs import answer_logprobs, last_mlp_at_states, rows_of, token_logprobs

PROMPTS = [[5, 6, 7, 8, 9], [4], [9, 8, 7]]
ANSWERS = [[7], [3, 4, 5, 6], [8, 1]]


@pytest.fixture(scope="module")
def model():
    return tiny_llama(tiny_tokenizer()).eval()


def by_hand(model, prompt: list[int], answer: list[int], temperature: float = 1.0) -> torch.Tensor:
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits.float() / temperature, -1)[range(len(answer)), answer].detach()


def test_left_padding_does_not_change_logits(model) -> None:
    ids, is_token = left_pad([PROMPTS[1], PROMPTS[0]], 0)
    padded = model(input_ids=ids, attention_mask=is_token.long(), position_ids=position_ids(is_token)).logits
    alone = model(torch.tensor([PROMPTS[1]])).logits
    torch.testing.assert_close(padded[0, -1:], alone[0], atol=1e-6, rtol=0)
    assert torch.isfinite(padded).all()


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_answers_in_a_batch_score_as_alone(model, batch_size: int, temperature: float) -> None:
    found = answer_logprobs(model, PROMPTS, ANSWERS, batch_size=batch_size, temperature=temperature)
    for prompt, answer, logprobs in zip(PROMPTS, ANSWERS, found, strict=True):
        torch.testing.assert_close(logprobs, by_hand(model, prompt, answer, temperature), atol=1e-6, rtol=0)


def test_temperature_divides_the_logits(model) -> None:
    """Two equal tokens at log-odds 1: at temperature 0.5 the odds are e^2."""
    logits, ids = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[0]])
    assert token_logprobs(logits, ids, 0.5).item() == pytest.approx(-torch.log1p(torch.tensor(-2.0).exp()).item())


def test_no_rows_and_empty_answers_are_fine(model) -> None:
    assert answer_logprobs(model, [], [], batch_size=4) == []
    found = answer_logprobs(model, [[4], [5]], [[], [6]], batch_size=4)
    assert [len(row) for row in found] == [0, 1]


def test_the_mode_of_the_model_is_put_back(model) -> None:
    model.train()
    answer_logprobs(model, PROMPTS, ANSWERS, batch_size=4)
    assert model.training
    model.eval()


def test_the_last_mlp_is_needed_at_the_states_of_the_answer_alone(model) -> None:
    """Log-probabilities, states and every gradient stay. Of 3 * 6 places the MLP sees 10 states and a padding."""
    rows = rows_of(PROMPTS, ANSWERS)
    seen: list[int] = []
    hook = model.model.layers[-1].mlp.register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0][..., 0].numel())
    )

    def results() -> list[torch.Tensor]:
        logprobs, hidden = rows.logprobs(model)
        states = rows.at_states(hidden)
        is_state = torch.arange(states.shape[1]) <= rows.is_action.sum(1, keepdim=True)
        loss = logprobs.sum() + states[is_state].sum()
        return [logprobs, states[is_state], *torch.autograd.grad(loss, list(model.parameters()))]

    whole = results()
    with last_mlp_at_states(model.model, rows):
        narrow = results()
    hook.remove()
    for one, other in zip(whole, narrow, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert seen == [18, 11]
