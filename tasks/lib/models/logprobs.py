"""Log-probabilities of given answers under a causal model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tasks.lib.models.batches import batches_by_length, left_pad, lengths_of, position_ids, right_pad
from tasks.lib.models.pass_size import scoring_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) at `ids`: logits (B, T, V), ids (B, T) -> (B, T), in float32.

    Divide policy and reference by the temperature the answers were sampled at, or their KL is not that of the
    sampled distribution (LMHP, N+ detail 5).
    """
    logits = logits.float()
    if temperature != 1:
        logits = logits / temperature  # a copy
    return logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def padded_answers(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts padded on the left and answers on the right, so that every answer starts in one column.

    Returns ids (B, P+T), is_token (B, P+T), is_answer (B, T), P and T the longest prompt and answer.
    Padding holds token 0: the masks come from lengths, so that even pad = EOS is safe.
    """
    prompt, is_prompt = left_pad(prompts, 0)
    answer, is_answer = right_pad(answers, 0)
    ids, is_token = torch.cat([prompt, answer], 1), torch.cat([is_prompt, is_answer], 1)
    return ids.to(device), is_token.to(device), is_answer.to(device)


def answer_logits(model: PreTrainedModel, ids: Tensor, is_token: Tensor, answer_width: int) -> Tensor:
    """The logits (B, T, V) that predict the last T = `answer_width` columns of `ids` (B, P+T)."""
    output = model(
        input_ids=ids,
        attention_mask=is_token.long(),
        position_ids=position_ids(is_token),
        logits_to_keep=answer_width + 1,  # the vocabulary is the widest matrix: skip the prompt
        use_cache=False,
    )
    return output.logits[:, -answer_width - 1 : -1]


@dataclass(frozen=True)
class Rows:
    """B prompts, each with its answer right after it, padded on the right.

    State t of a row is its prompt and the first t tokens of its answer: an answer of L tokens has L + 1 of them, and
    the first L predict a token. Causal attention sees no padding that comes later, so these rows need no mask; and
    rows that are equally long in all waste nothing, while prompts made to end in one column are padded on both sides.
    """

    ids: Tensor  # (B, W), padded with token 0
    columns: Tensor  # (B, T+1) of the states, T the longest answer; any column where a row has no such state
    is_action: Tensor  # (B, T) True at answer tokens

    def logprobs(self, model: Any, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probs (B, T) of the answers' tokens, 0 elsewhere, and the last hidden states (B, W, d) behind them.

        The output layer reads the predicting states alone: the vocabulary is the widest matrix. What the model does
        to its logits after that layer (a scale, a soft cap) is done to these.
        """
        row, step = self.is_action.nonzero(as_tuple=True)  # of every answer token, one after the other
        column = self.columns[row, step]  # of the state that predicts it; the token itself is one further
        hidden: list[Tensor] = []

        def predicting(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden.append(inputs[0])
            return (inputs[0][row, column], *inputs[1:])

        hook = model.get_output_embeddings().register_forward_pre_hook(predicting)
        try:
            logits = model(input_ids=self.ids, use_cache=False).logits  # (answer tokens, V)
        finally:
            hook.remove()
        logprobs = token_logprobs(logits, self.ids[row, column + 1], temperature)
        padded = logprobs.new_zeros(self.is_action.shape).index_put((row, step), logprobs)
        return padded, hidden[0]

    def at_states(self, hidden: Tensor) -> Tensor:
        """The states' rows (B, T+1, d) of hidden states (B, W, d)."""
        return hidden[torch.arange(len(hidden), device=hidden.device).unsqueeze(1), self.columns]


@contextmanager
def last_mlp_at_states(body: Any, rows: Rows) -> Iterator[None]:
    """In the block, the MLP of the last layer runs at the states of `rows` alone: elsewhere hidden states are wrong.

    Nothing reads them there, and of four layers that is a tenth of a pass. Models whose layers are not named as
    Llama's, or whose MLP is not one tensor to one (mixtures of experts), run as they are.
    """
    layers = getattr(body, "layers", None)
    mlp = getattr(layers[-1], "mlp", None) if layers else None
    if mlp is None or hasattr(mlp, "experts"):
        yield
        return
    is_state = torch.zeros_like(rows.ids, dtype=torch.bool).scatter(1, rows.columns, True)
    row, column = is_state.nonzero(as_tuple=True)

    def at_states(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][row, column], *inputs[1:])

    def put_back(_: Any, __: Any, output: Tensor) -> Tensor:
        return output.new_zeros(*rows.ids.shape, output.shape[-1]).index_put((row, column), output)

    hooks = [mlp.register_forward_pre_hook(at_states), mlp.register_forward_hook(put_back)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def rows_of(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> Rows:
    """The rows of prompts (not empty) and answers."""
    ids, _ = right_pad([[*p, *a] for p, a in zip(prompts, answers, strict=True)], 0)
    starts = torch.tensor([len(prompt) for prompt in prompts]).unsqueeze(1)  # (B, 1) column of the answer's first token
    lengths = torch.tensor([len(answer) for answer in answers]).unsqueeze(1)  # (B, 1)
    step = torch.arange(int(lengths.max()) + 1)  # (T+1)
    columns = (starts - 1 + step).clamp(max=ids.shape[1] - 1)  # (B, T+1) state t is read at token t - 1
    return Rows(ids.to(device), columns.to(device), (step[:-1] < lengths).to(device))


@torch.no_grad()
def answer_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    batch_size: int,
    temperature: float = 1.0,
) -> list[Tensor]:
    """The log-probability of every answer token: one tensor (len(answer),) per row, on the CPU.

    Runs without dropout and without gradient; rows of like length share a batch; the order is kept.
    """
    training = model.training
    model.eval()
    result: list[Tensor] = [torch.empty(0)] * len(prompts)
    tokens = scoring_tokens(model, logits=True)
    for batch in batches_by_length(lengths_of(prompts, answers), batch_size, longest_first=True, tokens=tokens):
        rows = rows_of([prompts[i] for i in batch], [answers[i] for i in batch], model.device)
        logprobs = rows.logprobs(model, temperature)[0].cpu()
        for i, row in zip(batch, logprobs, strict=True):
            result[i] = row[: len(answers[i])].clone()
    model.train(training)
    return result
