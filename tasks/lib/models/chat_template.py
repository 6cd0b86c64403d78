"""Chat templates: the one that a tokenizer came with or a plain one, how it begins and how it ends an answer."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tasks.lib.stage import Problem

QUESTION = {"role": "user", "content": "A question"}
MARKER = "Forty-two"  # an answer to find again in what a template writes

# `{% generation %}` marks the trained part for other readers, such as TRL: here it is known where an answer begins.
_MARKED = """{%% for message in messages %%}{%% if message.role == 'assistant' %%}%(open)s{%% generation %%}\
{{ message.content }}%(close)s{%% endgeneration %%}%(after)s{%% else %%}%(other)s{%% endif %%}{%% endfor %%}\
{%% if add_generation_prompt %%}%(open)s{%% endif %%}"""
CHATML = _MARKED % {
    "open": "{{ '<|im_start|>assistant\\n' }}",
    "close": "<|im_end|>",
    "after": "{{ '\\n' }}",
    "other": "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}",
}
PLAIN = _MARKED % {  # an answer begins a line: after "Assistant:" GPT-2's BPE would want a blank, Llama's none
    "open": "{{ 'Assistant:\\n' }}",
    "close": "{{ eos_token }}",
    "after": "{{ '\\n' }}",
    "other": "{{ message.role | capitalize + ': ' + message.content + '\\n' }}",
}


def default_template(tokenizer: Any) -> str:
    """The tokenizer's template, with `{% generation %}` where TRL knows how; else one for its tokens."""
    given = tokenizer.chat_template
    if isinstance(given, str) and "{% generation" in given.replace("{%-", "{%"):
        return given
    added = tokenizer.get_added_vocab()
    if given is not None:
        from trl.chat_template_utils import get_training_chat_template

        try:
            return str(get_training_chat_template(tokenizer) or given)
        except ValueError:  # not a template that TRL knows: the model was trained with it, so it stays
            return str(given)
    body = CHATML if {"<|im_start|>", "<|im_end|>"} <= added.keys() else PLAIN
    begins = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return ("{{ bos_token }}" if begins else "") + body


def turn_end(tokenizer: Any, limit: int) -> str:
    """The token that ends an answer in the chat template; the EOS where the template writes none.

    Gemma ends a turn with <end_of_turn>, not with its EOS: a model trained on the wrong one would not stop.
    Problem when the template fails or writes more than `limit` characters.
    """
    text = _rendered(tokenizer)
    if len(text) > limit or MARKER not in text:
        raise Problem(f"the chat template makes {len(text)} characters of a short conversation, or no answer")
    after_answer = text.rpartition(MARKER)[2]
    added = {number: token for token, number in tokenizer.get_added_vocab().items()}
    for number in tokenizer.encode(after_answer, add_special_tokens=False):
        if number in added:
            return str(added[number])
    return str(tokenizer.eos_token)


@lru_cache(maxsize=8)
def before_answer(tokenizer: Any, template: str) -> str:
    """The white space that `template`, the tokenizer's, writes before an answer: " " where " yes" is one token."""
    prompt = tokenizer.apply_chat_template([QUESTION], tokenize=False, add_generation_prompt=True)
    blanks, marker, _ = _rendered(tokenizer).removeprefix(prompt).partition(MARKER)
    return blanks if marker and blanks.isspace() else ""


def _rendered(tokenizer: Any) -> str:
    """The text of a question and the answer MARKER."""
    turns = [QUESTION, {"role": "assistant", "content": MARKER}]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception as error:  # templates raise their own errors
        raise Problem(f"the chat template does not work: {str(error)[:200]}") from None
