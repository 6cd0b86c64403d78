"""Prompts with an answer to each, and the forward passes that read them: what PPO's steps hand to one another.

A pass holds rows of like length, so that little of it is padding. With several processes each computes its share of the
passes, and all get every result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tasks.lib.models.batches import lengths_of, tight_batches
from tasks.lib.training.distributed import spread

TokenIds = list[list[int]]  # the tokens of N prompts, or of N answers
Result = TypeVar("Result")


@dataclass(frozen=True)
class Prompt:
    """A prompt's row id, for messages, its tokens, and its row, for rewards and judges that look at it."""

    id: str
    tokens: list[int]
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pass:
    """The rows of a batch that share a forward pass."""

    rows: list[int]  # indices into the batch
    prompts: TokenIds
    answers: TokenIds


@dataclass(frozen=True)
class Batch:
    """N prompts with an answer (token ids, the EOS included) to each."""

    prompts: Sequence[Prompt]
    answers: TokenIds
    batch_size: int  # rows in a pass, at most
    sampled_logprobs: list[list[float]] | None = None  # of the answers' tokens, where the policy itself drew them
    tokens: int | None = None  # in a pass, at most, padding included

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def ids(self) -> list[str]:
        """For messages."""
        return [prompt.id for prompt in self.prompts]

    def passes(self, rows: Sequence[int]) -> list[Pass]:
        """The passes over the rows of these indices, the shortest rows first."""
        passes = tight_batches(self._lengths(), self.batch_size, rows, tokens=self.tokens)
        return [self._pass(indices) for indices in passes]

    def map(self, work: Callable[[Pass], Iterable[Result]]) -> list[Result]:
        """A result per row, in the order of the rows, in every process; `work` gives those of the rows of one pass."""
        passes = tight_batches(self._lengths(), self.batch_size, tokens=self.tokens)
        return spread(passes, lambda indices: work(self._pass(indices)))

    def _lengths(self) -> list[int]:
        return lengths_of([prompt.tokens for prompt in self.prompts], self.answers)

    def _pass(self, rows: list[int]) -> Pass:
        prompts = [self.prompts[row].tokens for row in rows]
        answers = [self.answers[row] for row in rows]
        return Pass(rows, prompts, answers)
