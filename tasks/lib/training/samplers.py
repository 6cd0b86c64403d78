"""In which order a Trainer takes the training rows: in shuffled batches of like length, another order each epoch.

The order depends on seed and epoch alone, so that a resumed run goes on with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from tasks.lib.models.batches import shuffled_batches, token_batches


class LengthSampler(Sampler[int]):
    """Row numbers in batches of `batch_size` rows of about equal length.

    Rows of one of `groups` stay next to each other; without groups every row is one.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        groups: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.groups = groups or [[row] for row in range(len(lengths))]
        self.longest: list[int] = []  # tokens of the longest row of each group
        for group in self.groups:
            self.longest.append(max(lengths[row] for row in group))
        self.rows = len(lengths)
        self.groups_per_batch = max(1, batch_size * len(self.groups) // self.rows)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        for batch in shuffled_batches(self.longest, self.groups_per_batch, self.seed + self.epoch):
            for group in batch:
                yield from self.groups[group]


class TokenSampler(Sampler[list[int]]):
    """Batches of row numbers of about equal length and about `tokens` tokens, as many for each process."""

    def __init__(self, lengths: Sequence[int], tokens: int, seed: int, processes: int) -> None:
        self.lengths, self.tokens, self.seed, self.processes, self.epoch = lengths, tokens, seed, processes, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._batches())

    def __iter__(self) -> Iterator[list[int]]:
        yield from self._batches()

    def _batches(self) -> list[list[int]]:
        return token_batches(self.lengths, self.tokens, self.seed + self.epoch, multiple_of=self.processes)
