"""The rule that picks the policy: a candidate must beat the model it started from, or that model stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.lib.evaluation.intervals import Interval


@dataclass(frozen=True)
class Candidate:
    """One candidate's figures against the model that stays, all of the selection split."""

    name: str
    win_rate: Interval
    content_change: float  # exact match of the candidate minus that of the model that stays
    kl: float  # nats per answer


@dataclass(frozen=True)
class Rule:
    """What a candidate may cost."""

    max_content_loss: float
    max_kl: float

    def objections(self, candidate: Candidate) -> list[str]:
        """Why the candidate is not better, in words; empty if it passes."""
        against = []
        if candidate.win_rate.low <= 0.5:
            against.append(f"its win rate {candidate.win_rate} is not clearly above 0.50")
        if -candidate.content_change > self.max_content_loss:
            loss = f"it loses {-candidate.content_change:.3f} of exact match"
            against.append(f"{loss}, more than the {self.max_content_loss:g} allowed")
        if candidate.kl > self.max_kl:
            against.append(f"its KL {candidate.kl:.1f} exceeds the budget of {self.max_kl:g} nats per answer")
        return against


@dataclass(frozen=True)
class Choice:
    """The chosen name (None: none is better), and why: first the choice, then a line per candidate."""

    name: str | None
    reasons: list[str]


def choose_best(candidates: Sequence[Candidate], rule: Rule, stay: str) -> Choice:
    """Of the candidates without objections the one with the highest win rate; of equals the lower KL.

    None passes: the model `stay` stays. That is a result, not a failure.
    """
    objections = {candidate.name: rule.objections(candidate) for candidate in candidates}
    passing = [candidate for candidate in candidates if not objections[candidate.name]]
    lines = [
        f"{each.name}: win rate {each.win_rate}, exact match {each.content_change:+.3f}, KL {each.kl:.1f}: "
        + ("; ".join(objections[each.name]) or "passes")
        for each in candidates
    ]
    if not passing:
        return Choice(None, [f"{stay} stays: no candidate is better by the rule", *lines])
    best = min(passing, key=lambda each: (-each.win_rate.mean, each.kl, each.name))
    others = "the only candidate that passes" if len(passing) == 1 else "the highest win rate of those that pass"
    return Choice(best.name, [f"{best.name} is chosen: {others}", *lines])
