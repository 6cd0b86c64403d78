"""The tokenizer, and conversations as token ids: the one place where prompts and answers become tokens.

Prompt and answer are encoded apart and joined as ids. So training, sampling and scoring see the same ids for
the same text, whatever a tokenizer would merge across the border (sentencepiece adds a blank at the start of
a text, BPE without pre-tokenizer may join ":" and the answer).

Importing this module imports neither torch nor transformers: what only makes tokens need not wait for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tasks.lib.models.model_folder import existing_folder, first_line, refuse_code
from tasks.lib.stage import Problem

Messages = Sequence[dict[str, str]]
BLOCK = 1000  # rows that the tokenizer takes at once
IGNORED = -100  # the label of a token that is not trained; torch's cross-entropy leaves it out
MARKER = "Forty-two"  # an answer to find again in what a template writes

# `{% generation %}` marks the trained part for other readers, such as TRL: here the border is known.
_MARKED = """{%% for message in messages %%}{%% if message.role == 'assistant' %%}%(open)s{%% generation %%}\
{{ message.content }}%(close)s{%% endgeneration %%}%(after)s{%% else %%}%(other)s{%% endif %%}{%% endfor %%}\
{%% if add_generation_prompt %%}%(open)s{%% endif %%}"""
CHATML = _MARKED % {
    "open": "{{ '<|im_start|>assistant\\n' }}",
    "close": "<|im_end|>",
    "after": "{{ '\\n' }}",
    "other": "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}",
}
PLAIN = _MARKED % {  # the answer has its own line: after "Assistant:" GPT-2's BPE would want a blank, Llama's none
    "open": "{{ 'Assistant:\\n' }}",
    "close": "{{ eos_token }}",
    "after": "{{ '\\n' }}",
    "other": "{{ message.role | capitalize + ': ' + message.content + '\\n' }}",
}


def load_tokenizer(path: str | Path, *, ends: bool = True) -> Any:
    """The tokenizer of a model folder. Problem when it is missing, broken, or (`ends`) without EOS."""
    folder = existing_folder(path)
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    if not any((folder / name).is_file() for name in names):
        raise Problem(f"{folder}: no tokenizer files; put the model's tokenizer.json there")
    refuse_code(folder)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise Problem(f"{folder}: the tokenizer cannot be read: {first_line(error)}") from None
    for key in ("is_local", "local_files_only"):  # how it was loaded is no property of it
        tokenizer.init_kwargs.pop(key, None)
    if ends and tokenizer.eos_token_id is None:
        raise Problem(f"{folder}: the tokenizer has no EOS token; answers could not end")
    return tokenizer


def prompt_ids(tokenizer: Any, messages: Messages) -> list[int]:
    """Ids of a conversation up to where the assistant answers. Special tokens in a text are plain text."""
    added = tokenizer.get_added_vocab()
    try:
        return list(
            tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=True,
                return_dict=True,
                # a user must not be able to write "<|assistant|>"; it takes twice the time, so only if needed
                sanitize_control_tokens=any(token in message["content"] for message in messages for token in added),
            )["input_ids"]
        )
    except Exception as error:  # templates raise their own errors, such as "roles must alternate"
        raise Problem(f"the chat template cannot show this conversation: {str(error)[:200]}") from None


def answer_ids(tokenizer: Any, answer: str) -> list[int]:
    """Ids of an answer and the EOS. The blanks around an answer are not learned."""
    text = _lead(tokenizer, tokenizer.chat_template) + answer.strip()
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return [*ids, tokenizer.eos_token_id]


def example_ids(tokenizer: Any, messages: Messages, answer: str) -> tuple[list[int], list[bool]]:
    """Ids of prompt, answer and EOS, and for each whether it is of the answer (the trained part).

    Earlier assistant turns in `messages` are context, not trained. Problem when the answer is empty.
    """
    prompt, ending = prompt_ids(tokenizer, messages), answer_ids(tokenizer, _not_empty(answer))
    return prompt + ending, [False] * len(prompt) + [True] * len(ending)


def all_prompt_ids(tokenizer: Any, conversations: Sequence[Messages]) -> list[list[int]]:
    """`prompt_ids` of many conversations in half the time: the tokenizer takes a block of them at once."""
    added = tokenizer.get_added_vocab()
    found: list[list[int]] = []
    for start in range(0, len(conversations), BLOCK):
        block = [list(messages) for messages in conversations[start : start + BLOCK]]
        if any(token in message["content"] for turns in block for message in turns for token in added):
            found += [prompt_ids(tokenizer, messages) for messages in block]  # they go their own way
            continue
        settings = {"add_generation_prompt": True, "return_dict": True}
        try:
            found += tokenizer.apply_chat_template(block, **settings)["input_ids"]
        except Exception:  # one of them has a problem: which one?
            found += [prompt_ids(tokenizer, messages) for messages in block]
    return found


def all_answer_ids(tokenizer: Any, answers: Sequence[str]) -> list[list[int]]:
    """`answer_ids` of many answers, which the tokenizer takes at once."""
    lead, eos = _lead(tokenizer, tokenizer.chat_template), [tokenizer.eos_token_id]
    found: list[list[int]] = []
    for start in range(0, len(answers), BLOCK):
        block = [lead + answer.strip() for answer in answers[start : start + BLOCK]]
        ids = tokenizer(block, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        found += [[*each, *eos] for each in ids]
    return found


def all_example_ids(
    tokenizer: Any, rows: Sequence[dict[str, Any]], where: object
) -> list[tuple[list[int], list[bool]]]:
    """`example_ids` of rows {id, messages, answer} in a third of the time. Problem naming `where` and the row's id."""
    try:
        prompts = all_prompt_ids(tokenizer, [row["messages"] for row in rows])
        endings = all_answer_ids(tokenizer, [_not_empty(row["answer"]) for row in rows])
    except Problem:  # of which row?
        return [_example_ids_of(tokenizer, row, where) for row in rows]
    return [
        ([*prompt, *ending], [False] * len(prompt) + [True] * len(ending))
        for prompt, ending in zip(prompts, endings, strict=True)
    ]


def labels_of(ids: Sequence[int], is_trained: Sequence[bool]) -> list[int]:
    """The label of every token: its id where it is trained, else `IGNORED`."""
    return [token if trained else IGNORED for token, trained in zip(ids, is_trained, strict=True)]


def _example_ids_of(tokenizer: Any, row: dict[str, Any], where: object) -> tuple[list[int], list[bool]]:
    try:
        return example_ids(tokenizer, row["messages"], row["answer"])
    except Problem as problem:
        raise Problem(f"{where}: row {row['id']}: {problem}") from None


def _not_empty(answer: str) -> str:
    if not answer.strip():
        raise Problem("an empty answer has no token to train; drop the row")
    return answer.strip()


def answer_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of answer ids, without special tokens and outer blanks."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip()


def preview(tokenizer: Any, ids: Sequence[int], is_trained: Sequence[bool]) -> str:
    """One row as text with every run of trained tokens in [[ ]], special tokens shown, one line."""
    pieces, start = [], 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or is_trained[end] != is_trained[start]:
            text = tokenizer.decode(list(ids[start:end]), clean_up_tokenization_spaces=False)
            pieces.append(f"[[{text}]]" if is_trained[start] else text)
            start = end
    return "".join(pieces).replace("\n", "\\n")


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
    ids = tokenizer.encode(text.rpartition(MARKER)[2], add_special_tokens=False)
    added = {i: token for token, i in tokenizer.get_added_vocab().items()}
    return next((added[i] for i in ids if i in added), tokenizer.eos_token)


@lru_cache(maxsize=8)
def _lead(tokenizer: Any, template: str) -> str:
    """The blanks that the template writes before an answer: " " where " yes" is one token."""
    question = [{"role": "user", "content": "A question"}]
    before = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    lead, found, _ = _rendered(tokenizer).removeprefix(before).partition(MARKER)
    return lead if found and lead.isspace() else ""


def _rendered(tokenizer: Any) -> str:
    turns = [{"role": "user", "content": "A question"}, {"role": "assistant", "content": MARKER}]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception as error:  # templates raise their own errors
        raise Problem(f"the chat template does not work: {str(error)[:200]}") from None
