"""What a chat template writes around an answer."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tasks.lib.stage import Problem

QUESTION = {"role": "user", "content": "A question"}
MARKER = "Forty-two"  # an answer to find again in what a template writes
ANSWER = {"role": "assistant", "content": MARKER}


@lru_cache(maxsize=8)
def around_answer(tokenizer: Any, template: str) -> tuple[str, str]:
    """The white space that `template`, the tokenizer's, writes before an answer, and between it and the EOS.

    " " before it, where " yes" is one token; " " after it in Llama 2. Problem when it writes more before it: the model
    would be asked for answers after another text than it was trained on.
    """
    before = text_before_answer(tokenizer, template)
    if before is None or before.strip():
        text = "another text than its generation prompt" if before is None else repr(before)
        raise Problem(f"the chat template writes {text} before an answer; take the model in with base.model")
    after, eos, _ = (
        rendered(tokenizer, template, [QUESTION, ANSWER]).rpartition(MARKER)[2].partition(tokenizer.eos_token)
    )
    return before, after if eos and not after.strip() else ""


def text_before_answer(tokenizer: Any, template: str) -> str | None:
    """What `template` writes between its generation prompt and an answer; None if the prompt does not begin that."""
    prompt = rendered(tokenizer, template, [QUESTION], add_generation_prompt=True)
    written = rendered(tokenizer, template, [QUESTION, ANSWER])
    if not written.startswith(prompt) or MARKER not in written:
        return None
    return written.removeprefix(prompt).partition(MARKER)[0]


def is_blank(text: str | None) -> bool:
    """Whether a text holds white space at most."""
    return text is not None and not text.strip()


def rendered(tokenizer: Any, template: str, turns: list[dict[str, str]], **settings: bool) -> str:
    """The text that the template writes. Problem when it fails."""
    try:
        return str(tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, **settings))
    except Exception as error:  # templates raise their own errors
        raise Problem(f"the chat template does not work: {str(error)[:200]}") from None
