"""When two prompts are one prompt: the only answer to that, for splits, contracts, curation, agreement, reward and DPO.

Two texts are alike in Unicode's composed form (NFC), without regard to case, and with every run of white space as one
blank. Two prompts are the same if they have alike messages of the same roles in the same order. The sameness is wide on
purpose: a prompt that is in training as `Hello` and in a test as `hello` makes the test worth less, while the
rankings of both, taken together, lose nothing. The text that a model reads is never changed by it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

from tasks.lib.data.rows import content_id


def normal_form(text: str) -> str:
    """What alike texts have in common."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def prompt_key(messages: Sequence[Mapping[str, str]]) -> str:
    """16 hex digits that are equal for equal prompts, messages {role, content}."""
    return content_id([[message["role"], normal_form(message["content"])] for message in messages])
