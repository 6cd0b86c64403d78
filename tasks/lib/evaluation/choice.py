"""The rule that picks the policy: a candidate must beat the model it started from, or that model stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.lib.evaluation.intervals import Interval


@dataclass(frozen=True)
class Candidate:
    """One candidate's figures against the model that stays, all of the split that selects."""

    name: str
    win_rate: Interval
    content_change: float  # exact match, or score, of the candidate minus that of the model that stays
    kl: float  # nats per answer
    content: str = "exact match"  # what the change is of


@dataclass(frozen=True)
class Rule:
    """What a candidate may cost."""

    max_content_loss: float
    max_kl: float

    def objections(self, candidate: Candidate) -> list[str]:
        """Why the candidate is not better, in words; empty if it passes."""
        objections: list[str] = []
        if candidate.win_rate.low <= 0.5:
            objections.append(f"its win rate {candidate.win_rate} is not clearly above 0.50")
        if -candidate.content_change > self.max_content_loss:
            loss = f"it loses {-candidate.content_change:.3f} of {candidate.content}"
            objections.append(f"{loss}, more than the {self.max_content_loss:g} allowed")
        if candidate.kl > self.max_kl:
            objections.append(f"its KL {candidate.kl:.1f} exceeds the budget of {self.max_kl:g} nats per answer")
        return objections


@dataclass(frozen=True)
class Choice:
    """The chosen name (None: none is better), and why: first the choice, then a line per candidate."""

    name: str | None
    reasons: list[str]


def choose_best(candidates: Sequence[Candidate], rule: Rule, stay: str) -> Choice:
    """Of the candidates without objections the one with the highest win rate; of equals the lower KL.

    None passes: the model `stay` stays. That is a result, not a failure.
    """
    passing: list[Candidate] = []
    lines: list[str] = []
    for candidate in candidates:
        objections = rule.objections(candidate)
        if not objections:
            passing.append(candidate)
        figures = f"win rate {candidate.win_rate}, {candidate.content} {candidate.content_change:+.3f}"
        figures += f", KL {candidate.kl:.1f}"
        lines.append(f"{candidate.name}: {figures}: {'; '.join(objections) or 'passes'}")
    if not passing:
        return Choice(None, [f"{stay} stays: no candidate is better by the rule", *lines])
    best = min(passing, key=lambda candidate: (-candidate.win_rate.mean, candidate.kl, candidate.name))
    reason = "the only candidate that passes" if len(passing) == 1 else "the highest win rate of those that pass"
    return Choice(best.name, [f"{best.name} is chosen: {reason}", *lines])
