"""The tokenizer, and conversations as token ids: the one place where prompts and answers become tokens.

Prompt and answer are encoded apart and joined as ids. So training, sampling and scoring see the same ids for
the same text, whatever a tokenizer would merge across the border (sentencepiece adds a blank at the start of
a text, BPE without pre-tokenizer may join ":" and the answer).

Importing this module imports neither torch nor transformers: what only makes tokens need not wait for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.lib.models.chat_template import around_answer
from tasks.lib.models.model_folder import existing_folder, first_line, refuse_code
from tasks.lib.stage import Problem

Messages = Sequence[dict[str, str]]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
BLOCK = 1000  # rows that the tokenizer takes at once
THOUGHT_END = "</think>"
IGNORED = -100  # the label of a token that is not trained; torch's cross-entropy leaves it out


def load_tokenizer(path: str | Path, *, ends: bool = True) -> Any:
    """The tokenizer of a model folder. Problem when it is missing, broken, or (`ends`) without EOS."""
    folder = existing_folder(path)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
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
    # a user must not be able to write "<|assistant|>"; the check takes twice the time, so only if needed
    forged = _has_special_token(tokenizer, [messages])
    try:
        encoded = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=True, sanitize_control_tokens=forged
        )
    except Exception as error:  # templates raise their own errors, such as "roles must alternate"
        raise Problem(f"the chat template cannot render this conversation: {str(error)[:200]}") from None
    return list(encoded["input_ids"])


def answer_ids(tokenizer: Any, answer: str) -> list[int]:
    """Ids of an answer and the EOS. The blanks around an answer are not learned."""
    before, after = around_answer(tokenizer, tokenizer.chat_template)
    ids = tokenizer.encode(before + answer.strip() + after, add_special_tokens=False, split_special_tokens=True)
    return [*ids, tokenizer.eos_token_id]


def example_ids(tokenizer: Any, messages: Messages, answer: str) -> tuple[list[int], list[bool]]:
    """Ids of prompt, answer and EOS, and for each whether it is of the answer (the trained part).

    Earlier assistant turns in `messages` are context, not trained. Problem when the answer is empty, or holds a thought
    that the chat template would write elsewhere.
    """
    return _joined(prompt_ids(tokenizer, messages), answer_ids(tokenizer, _trainable(tokenizer, answer)))


def all_prompt_ids(tokenizer: Any, conversations: Sequence[Messages]) -> list[list[int]]:
    """`prompt_ids` of many conversations in half the time: the tokenizer takes a block of them at once."""
    found: list[list[int]] = []
    for start in range(0, len(conversations), BLOCK):
        found += _block_of_prompt_ids(tokenizer, conversations[start : start + BLOCK])
    return found


def _block_of_prompt_ids(tokenizer: Any, conversations: Sequence[Messages]) -> list[list[int]]:
    if not _has_special_token(tokenizer, conversations):
        try:
            encoded = tokenizer.apply_chat_template(list(conversations), add_generation_prompt=True, return_dict=True)
            return list(encoded["input_ids"])
        except Exception:  # one by one, so that the Problem is that of the conversation
            pass
    return [prompt_ids(tokenizer, messages) for messages in conversations]


def all_answer_ids(tokenizer: Any, answers: Sequence[str]) -> list[list[int]]:
    """`answer_ids` of many answers, which the tokenizer takes at once."""
    before, after = around_answer(tokenizer, tokenizer.chat_template)
    found: list[list[int]] = []
    for start in range(0, len(answers), BLOCK):
        texts = [before + answer.strip() + after for answer in answers[start : start + BLOCK]]
        encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        found += [[*ids, tokenizer.eos_token_id] for ids in encoded]
    return found


def all_example_ids(
    tokenizer: Any, rows: Sequence[dict[str, Any]], where: object
) -> list[tuple[list[int], list[bool]]]:
    """`example_ids` of rows {id, messages, answer} in a third of the time. Problem naming `where` and the row's id."""
    try:
        prompts = all_prompt_ids(tokenizer, [row["messages"] for row in rows])
        answers = all_answer_ids(tokenizer, [_trainable(tokenizer, row["answer"]) for row in rows])
    except Problem:  # one by one, so that the Problem names the row
        return [_example_ids_of(tokenizer, row, where) for row in rows]
    return [_joined(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def _example_ids_of(tokenizer: Any, row: dict[str, Any], where: object) -> tuple[list[int], list[bool]]:
    try:
        return example_ids(tokenizer, row["messages"], row["answer"])
    except Problem as problem:
        raise Problem(f"{where}: row {row['id']}: {problem}") from None


def _joined(prompt: list[int], answer: list[int]) -> tuple[list[int], list[bool]]:
    return prompt + answer, [False] * len(prompt) + [True] * len(answer)


def labels_of(ids: Sequence[int], is_trained: Sequence[bool]) -> list[int]:
    """The label of every token: its id where it is trained, else `IGNORED`."""
    return [token if trained else IGNORED for token, trained in zip(ids, is_trained, strict=True)]


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


def _has_special_token(tokenizer: Any, conversations: Sequence[Messages]) -> bool:
    """Whether a message holds the name of a special token as text."""
    special = tokenizer.get_added_vocab()
    for messages in conversations:
        for message in messages:
            if any(token in message["content"] for token in special):
                return True
    return False


def _trainable(tokenizer: Any, answer: str) -> str:
    if not answer.strip():
        raise Problem("an empty answer has no token to train; drop the row")
    if THOUGHT_END in answer and THOUGHT_END in tokenizer.chat_template:
        raise Problem(f"the chat template takes the thought before {THOUGHT_END} out of an answer; drop it, or the row")
    return answer.strip()
