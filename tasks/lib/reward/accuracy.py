"""How often rewards order two answers as annotators did, from every side, and what else would order them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tasks.lib.annotation.agreement import Verdicts, agreement_with_others, majority

Rewards = Mapping[tuple[str, str], float]  # (prompt_key, answer) -> raw reward


@dataclass(frozen=True)
class OrderedPair:
    """Two answers that an annotator did not rank equal: the preferred one's reward and length less the other's."""

    prompt_key: str
    annotator: str
    margin: float
    longer_by: int  # characters

    @property
    def hit(self) -> float:
        """1 if the rewards order the pair as the annotator did, 0 if not, a half if they are equal."""
        return _hit(self.margin)


def _hit(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def ordered_pairs(votes: Verdicts, reward_of: Rewards, by_majority: bool = False) -> list[OrderedPair]:
    """The pairs that each annotator ordered, or with `by_majority` those that most of them order. Ties are no pairs."""
    pairs = []
    for (prompt, first, second), vote_of in votes.items():
        if by_majority:
            vote_of = {"majority": majority(vote_of.values())}
        for annotator, vote in vote_of.items():
            if vote != 0:  # 1: the first is preferred, -1: the second
                margin = vote * (reward_of[prompt, first] - reward_of[prompt, second])
                longer_by = vote * (len(first) - len(second))
                pairs.append(OrderedPair(prompt, annotator, margin, longer_by))
    return pairs


def accuracy(pairs: Sequence[OrderedPair]) -> float | None:
    """The share of pairs ordered right; None of no pairs."""
    return sum(pair.hit for pair in pairs) / len(pairs) if pairs else None


def accuracies(votes: Verdicts, reward_of: Rewards) -> dict[str, float]:
    """Accuracy on pairs from every side; a figure that has no pairs is left out.

    accuracy_majority: against the annotators' majority; accuracy_unanimous: where at least two all agree;
    accuracy_<name>: against one annotator; accuracy_margin_1 to 4: from the least to the most certain quarter
    of pairs; noise_ceiling: what annotators reach against the majority of the others; accuracy_longer: of the
    rule "the longer answer is better"; accuracy_longer_is_worse: of the rewards where that rule is wrong.
    """
    pairs = ordered_pairs(votes, reward_of)
    longer_is_worse = [pair for pair in pairs if pair.longer_by < 0]
    shares: dict[str, float | None] = {
        "accuracy_majority": accuracy(ordered_pairs(votes, reward_of, by_majority=True)),
        "accuracy_unanimous": accuracy(ordered_pairs(_unanimous(votes), reward_of, by_majority=True)),
        "noise_ceiling": noise_ceiling(votes),
        "best_possible": best_possible(votes),
        "accuracy_longer": sum(_hit(pair.longer_by) for pair in pairs) / len(pairs) if pairs else None,
        "accuracy_longer_is_worse": accuracy(longer_is_worse),
    }
    for quarter, (_, share) in enumerate(by_margin(pairs), 1):
        shares[f"accuracy_margin_{quarter}"] = share
    of_annotator: dict[str, list[OrderedPair]] = {}
    for pair in pairs:
        of_annotator.setdefault(pair.annotator, []).append(pair)
    for name in sorted(of_annotator):
        shares[f"accuracy_{name}"] = accuracy(of_annotator[name])
    return {name: share for name, share in shares.items() if share is not None}


def _unanimous(votes: Verdicts) -> Verdicts:
    """The pairs on which at least two annotators have a verdict, all the same and no tie."""
    unanimous: Verdicts = {}
    for pair, vote_of in votes.items():
        if len(vote_of) > 1 and abs(sum(vote_of.values())) == len(vote_of):
            unanimous[pair] = vote_of
    return unanimous


def noise_ceiling(votes: Verdicts) -> float | None:
    """The mean over annotators of their agreement with the majority of the others; None if none can be compared."""
    shares = [share for share, _ in agreement_with_others(votes).values()]
    return sum(shares) / len(shares) if shares else None


def best_possible(votes: Verdicts) -> float | None:
    """What the best ordering of the answers would get on these very verdicts: their majority, pair by pair."""
    total = right = 0
    for vote_of in votes.values():
        verdicts = list(vote_of.values())
        first, second = verdicts.count(1), verdicts.count(-1)
        total += first + second
        right += max(first, second)
    return right / total if total else None


def by_source(pairs: Sequence[OrderedPair], source_of: Mapping[tuple[str, str], str]) -> dict[str, float]:
    """`accuracy_source_<name>`: accuracy on the pairs of each source; `source_of` is by prompt_key and annotator."""
    of_source: dict[str, list[OrderedPair]] = {}
    for pair in pairs:
        of_source.setdefault(source_of[pair.prompt_key, pair.annotator], []).append(pair)
    shares = {}
    for name in sorted(of_source):
        shares[f"accuracy_source_{'_'.join(name.split())}"] = accuracy(of_source[name]) or 0.0
    return shares


def by_margin(pairs: Sequence[OrderedPair], parts: int = 4) -> list[tuple[float, float]]:
    """(least margin, accuracy) of equal parts of the pairs, from unsure to sure; empty parts are left out."""
    unsure_first = sorted(pairs, key=lambda pair: abs(pair.margin))
    cuts = [len(pairs) * part // parts for part in range(parts + 1)]
    shares = []
    for start, end in pairwise(cuts):
        part = unsure_first[start:end]
        if part:
            shares.append((abs(part[0].margin), accuracy(part) or 0.0))
    return shares
