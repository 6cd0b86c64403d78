"""What a reward model has to beat: the words of an answer, without the prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.lib.reward.groups import Group, batch_ranks
from tasks.lib.reward.ranking_loss import ranking_loss

STEPS, RATE, DECAY = 60, 0.1, 1e-3  # of Adam on a convex loss: more steps change no verdict


def bag_of_words(train: Sequence[Group], heldout: Sequence[Group]) -> list[Tensor]:
    """Rewards (K, 1) of every held-out prompt's answers by a linear model of their words, trained on the training
    rankings.

    One weight per word of at least two training answers, counted once per answer, and the same ranking loss as the
    reward model. The prompt is not looked at: what this model reaches is style.
    """
    vocabulary = _vocabulary(train)
    places, ranks = batch_ranks(train)
    words, starts = _words_of(train, vocabulary)
    weights = torch.zeros(len(vocabulary) + 1, 1, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=RATE)
    for _ in range(STEPS):
        scores = _scores(weights, words, starts)
        loss = ranking_loss(scores[places], ranks) + DECAY * weights.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        scores = _scores(weights, *_words_of(heldout, vocabulary))
    return list(scores.unsqueeze(1).split([len(group.answers) for group in heldout]))


def _vocabulary(groups: Sequence[Group]) -> dict[str, int]:
    """Word -> number, of the words of at least two answers."""
    count = Counter[str]()
    for group in groups:
        for answer in group.answers:
            count.update(set(answer.split()))
    vocabulary: dict[str, int] = {}
    for word in sorted(count):
        if count[word] > 1:
            vocabulary[word] = len(vocabulary)
    return vocabulary


def _words_of(groups: Sequence[Group], vocabulary: dict[str, int]) -> tuple[Tensor, Tensor]:
    """(numbers of the known words of all answers, where each answer's words begin)."""
    words: list[int] = []
    starts: list[int] = []
    for group in groups:
        for answer in group.answers:
            starts.append(len(words))
            words += sorted(vocabulary[word] for word in set(answer.split()) if word in vocabulary)
    return torch.tensor(words, dtype=torch.long), torch.tensor(starts)


def _scores(weights: Tensor, words: Tensor, starts: Tensor) -> Tensor:
    """The sum of its words' weights for every answer (A,)."""
    return torch.nn.functional.embedding_bag(words, weights, starts, mode="sum").squeeze(1)
