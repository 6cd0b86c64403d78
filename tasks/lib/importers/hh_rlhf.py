r"""hh-rlhf (arXiv 2204.05862): two transcripts that are alike but for their last answer.

    {"chosen": "\n\nHuman: Q\n\nAssistant: Yes.", "rejected": "\n\nHuman: Q\n\nAssistant: No."}

The prompt is what both share before the last answer. There are no ties and no abstentions. Dropped are transcripts that
differ before their last answer (`prompts_differ`) or do not end with one (`no_answer`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tasks.lib.data.rows import Row
from tasks.lib.importers.pairwise import DIFFER, has_prompt, pair_ranking
from tasks.lib.importers.rankings import Dropped, Export, Messages, Ranking
from tasks.lib.stage import Problem


def is_transcript(row: Row) -> bool:
    return {"chosen", "rejected"} <= row.keys() and not has_prompt(row) and "\n\nHuman:" in str(row["chosen"])


def read(export: Export) -> Iterator[Ranking | Dropped]:
    """The last answers of two transcripts."""
    for where, row in export.rows:
        chosen = _messages(f"{where}:chosen", row["chosen"])
        rejected = _messages(f"{where}:rejected", row["rejected"])
        if chosen[:-1] != rejected[:-1]:
            yield Dropped(where, *DIFFER)
        elif chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant" or len(chosen) < 2:
            yield Dropped(where, "no_answer", "the transcript does not end with an answer to somebody")
        else:
            answers = [chosen[-1]["content"], rejected[-1]["content"]]
            yield pair_ranking(export, where, row, chosen[:-1], answers, [0, 1])


def _messages(where: str, text: Any) -> Messages:
    parts = re.split(r"\n\n(Human|Assistant):", text) if isinstance(text, str) else []
    if len(parts) < 3 or parts[0].strip():
        raise Problem(f"{where}: expected a transcript of Human: and Assistant:, found {str(text)[:60]!r}")
    messages = []
    for speaker, content in zip(parts[1::2], parts[2::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        messages.append({"role": role, "content": content.strip()})
    return messages
