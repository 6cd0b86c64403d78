"""The chat template that is stored with a model: its own or a plain one, edited where the pipeline needs it otherwise.

It writes in its generation prompt all that it writes before an answer in a finished conversation. So every stage, and
everybody who serves the released model, asks for an answer after the text that training had before it.
"""

from __future__ import annotations

import json
import re
from datetime import date
from typing import Any

from tasks.lib.models.chat_template import ANSWER, MARKER, QUESTION, is_blank, rendered, text_before_answer
from tasks.lib.settings.base import SystemRole
from tasks.lib.stage import Problem

SYSTEM = {"role": "system", "content": "Answer briefly"}

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
# The lines that edits put before a template; its first line break belongs to them (jinja's trim_blocks).
THOUGHTS_OFF = "{%- set enable_thinking = false %}\n"  # llama.cpp's server passes true to every template
_SYSTEM_FIRST = "{%- if messages and messages[0]['role'] == 'system' %}"
_REFUSE = _SYSTEM_FIRST + "{{- raise_exception('no system messages: base.system_role is refuse') }}{%- endif %}\n"
_MERGE = (
    _SYSTEM_FIRST + "{%- if messages[1] is defined and messages[1]['role'] == 'user' %}"
    "{%- set messages = [{'role': 'user', 'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}]"
    " + messages[2:] %}{%- endif %}{%- endif %}\n"
)


def stored_template(tokenizer: Any, day: date | None, system_role: SystemRole) -> str:
    """The template to store with the tokenizer's model.

    The clock is set to `day` (`with_date`), system messages have a place (`with_system_role`), and a generation prompt
    holds what is written before an answer (`with_whole_prompt`). A template that needs none of it keeps its text.
    Problem when the template does not work.
    """
    template = with_date(default_template(tokenizer), day)
    template = with_whole_prompt(tokenizer, template)
    return with_system_role(tokenizer, template, system_role)


def default_template(tokenizer: Any) -> str:
    """The tokenizer's template, with `{% generation %}` where TRL knows how; else one for its tokens."""
    given = tokenizer.chat_template
    if isinstance(given, str) and "{% generation" in given.replace("{%-", "{%"):
        return given
    if given is not None:
        return _marked(tokenizer, given)
    added = tokenizer.get_added_vocab()
    body = CHATML if {"<|im_start|>", "<|im_end|>"} <= added.keys() else PLAIN
    begins = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return ("{{ bos_token }}" if begins else "") + body


def _marked(tokenizer: Any, given: str) -> str:
    """TRL's template for training in place of `given`, if it writes the same: that for Qwen3 adds thoughts."""
    from trl.chat_template_utils import get_training_chat_template

    try:
        marked = get_training_chat_template(tokenizer)
    except ValueError:  # not a template that TRL knows: the model was trained with it, so it stays
        return given
    if marked is None:
        return given
    for turns in ([QUESTION, ANSWER], [SYSTEM, QUESTION, ANSWER], [QUESTION, ANSWER, QUESTION, ANSWER]):
        try:
            if rendered(tokenizer, given, turns) != rendered(tokenizer, marked, turns):
                return given
        except Problem:  # neither takes a system message
            continue
    return str(marked)


def with_date(template: str, day: date | None) -> str:
    """`template` with `day` as the day that it writes, so that ids do not depend on when a stage runs.

    Problem when it reads the clock in another way than `strftime_now('<format>')`, or `day` is None.
    """
    if "strftime_now" not in _code(template):
        return template
    if day is None:
        raise Problem("the chat template writes today's date; name the date to write in base.template_date")
    frozen = re.sub(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)", lambda call: f"'{day.strftime(call[2])}'", template)
    frozen = re.sub(r"strftime_now\s+is\s+(not\s+defined|undefined)", "false", frozen)
    frozen = re.sub(r"strftime_now\s+is\s+defined", "true", frozen)
    if "strftime_now" in _code(frozen):
        raise Problem("the chat template reads the clock in a way that base.template_date cannot set")
    return frozen


def with_system_role(tokenizer: Any, template: str, system_role: SystemRole) -> str:
    """`template` if it writes system messages; else with a line before it that merges or refuses them.

    Gemma's template raises an error, others drop the text. Merging puts it before the first question.
    """
    try:
        if SYSTEM["content"] in rendered(tokenizer, template, [SYSTEM, QUESTION, ANSWER]):
            return template
    except Problem:
        pass
    return (_MERGE if system_role == "merge" else _REFUSE) + template


def with_whole_prompt(tokenizer: Any, template: str) -> str:
    """`template` with a generation prompt that holds the text which it writes before a finished answer.

    Rows hold answers without thoughts. Before such an answer Qwen3 writes an empty thought, gpt-oss the name of a
    channel. Where the template has a switch for thoughts, they are off; else the text is appended.
    """
    off = THOUGHTS_OFF + template
    can_think = "enable_thinking" in _code(template) and THOUGHTS_OFF not in template
    if can_think and is_blank(text_before_answer(tokenizer, off)):
        return off
    before = text_before_answer(tokenizer, template)
    if before is None or not before.strip():  # None: the prompt opens what no finished conversation has
        return template
    text = json.dumps(before, ensure_ascii=False)
    return template.removesuffix("\n") + "{% if add_generation_prompt %}{{ " + text + " }}{% endif %}"


def turn_end(tokenizer: Any, limit: int) -> str:
    """The token that ends an answer in the chat template; the EOS where the template writes none.

    Gemma ends a turn with <end_of_turn>, not with its EOS: a model trained on the wrong one would not stop. GLM-4
    writes nothing after the last answer, but <|user|> after the others. Problem when the template fails or writes more
    than `limit` characters.
    """
    added = {number: token for token, number in tokenizer.get_added_vocab().items()}
    for later in ([], [QUESTION]):
        text = rendered(tokenizer, tokenizer.chat_template, [QUESTION, ANSWER, *later])
        if len(text) > limit or MARKER not in text:
            raise Problem(f"the chat template makes {len(text)} characters of a short conversation, or no answer")
        for number in tokenizer.encode(text.rpartition(MARKER)[2], add_special_tokens=False):
            if number in added:
                return str(added[number])
    return str(tokenizer.eos_token)


def _code(template: str) -> str:
    """A template without its comments."""
    return re.sub(r"\{#.*?#\}", "", template, flags=re.DOTALL)
