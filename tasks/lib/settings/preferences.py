"""The section `preferences` of params.yaml: how annotations become rankings."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field


class Params(BaseModel, extra="forbid"):
    annotations: Path
    """Folder of the exports. `annotate` writes data/annotations; another folder makes its output unused."""
    formats: dict[str, str]
    """A file's name and its format, for files whose rows fit several formats."""
    license: str
    """For rankings that come without a licence; `release` lets listed licences pass only."""
    annotators: dict[str, str]
    """An annotator's number in the exports and the name that reports call them by."""
    buckets: list[str]
    """Names of the buckets of a bucket ranker from the best to the worst; empty takes the export's order."""
    attributes: list[str]
    """Names of ratings to take in, for `reward.training.attributes` and `dpo.thumbs`."""
    untouched_seconds: float = Field(ge=0)
    """Seconds under which an unchanged order counts as not looked at, and is dropped."""
    benchmarks: Path
    """Folder of pairs that judge the reward model and never train it; may hold none."""
    heldout_share: float = Field(gt=0, lt=1)
    """Fraction of the prompts that test the reward model and DPO."""
