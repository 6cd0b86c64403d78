"""What a reward model has to beat: the length of an answer, and its words without the prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from tasks.lib.reward.ranking_loss import ranking_loss
from tasks.lib.reward.reward_model import Group, batch_ranks

STEPS, RATE, DECAY = 60, 0.1, 1e-3  # of Adam on a convex loss: more steps change no verdict


def bag_of_words(train: Sequence[Group], heldout: Sequence[Group]) -> list[list[float]]:
    """Rewards of the held-out answers by a linear model of their words, trained on the training rankings.

    One weight per word that stands in at least two training answers, counted once per answer, and the same
    ranking loss as the reward model. The prompt is not looked at: what this model reaches is style.
    """
    count = Counter(word for group in train for answer in group.answers for word in set(answer.split()))
    number = {word: place for place, word in enumerate(w for w, n in sorted(count.items()) if n > 1)}
    places, ranks = batch_ranks(train)
    words, starts = _words_of(train, number)
    weights = torch.zeros(len(number) + 1, 1, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=RATE)
    for _ in range(STEPS):
        scores = torch.nn.functional.embedding_bag(words, weights, starts, mode="sum").squeeze(1)
        loss = ranking_loss(scores[places], ranks) + DECAY * weights.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        words, starts = _words_of(heldout, number)
        found = iter(torch.nn.functional.embedding_bag(words, weights, starts, mode="sum").flatten().tolist())
    return [[next(found) for _ in group.answers] for group in heldout]


def _words_of(groups: Sequence[Group], number: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(numbers of the known words of all answers, where each answer's words begin)."""
    words: list[int] = []
    starts: list[int] = []
    for group in groups:
        for answer in group.answers:
            starts.append(len(words))
            words += sorted(number[word] for word in set(answer.split()) if word in number)
    return torch.tensor(words, dtype=torch.long), torch.tensor(starts)
