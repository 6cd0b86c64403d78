"""Whether llama.cpp would run a GGUF file as transformers runs the model: the same tokens, the same probabilities.

Tokens are compared by the file's own vocabulary. With the extra `engine` (xllamacpp: llama.cpp as a wheel) llama.cpp
itself is asked for probabilities too, in a child process that may crash.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tasks.lib.export.gguf_vocabulary import Vocabulary, adds_prefix_space
from tasks.lib.models.chat import Messages, prompt_ids
from tasks.lib.stage import Problem

ENGINE_TOLERANCE = 0.3  # nats; llama.cpp keeps its cache in f16 and rounds activations for q8_0
ODD_TEXTS = (
    "", " ", "   three spaces", "ends in spaces   ", "tab\tand\r\nline\n\nends\n", "don't we'll I'M 'quoted'",
    "1234567890 3.14159 1e-5", "naïve café Ελληνικά русский", "中文 日本語 한국어 ไทย", "عربى עברית",
    "👩‍👩‍👧 🇪🇺 e\u0301", "zero\u200bwidth\u00a0no-break\u3000wide", "_under-score--dashes... !!??",
    "{{ braces }} <tag>", "x" * 200, "aAaA" * 20, "\x00\x01\x7f",
)  # fmt: skip


def check_tokens(
    tokenizer: Any, vocabulary: Vocabulary, conversations: Sequence[Messages], texts: Sequence[str]
) -> None:
    """Raise Problem when llama.cpp would cut a conversation, a text or an odd text into other tokens."""
    if vocabulary.chat_template:
        for conversation in conversations:
            text = tokenizer.apply_chat_template(
                list(conversation),
                chat_template=vocabulary.chat_template,
                add_generation_prompt=True,
                tokenize=False,
            )
            if vocabulary.encode(text, add_special=False) != prompt_ids(tokenizer, conversation):
                raise Problem(f"different tokens for the conversation that starts {conversation[0]['content'][:40]!r}")
    adds_space = adds_prefix_space(tokenizer)  # reads the whole tokenizer
    for text in (*texts, *ODD_TEXTS):
        if vocabulary.encode(as_engine_input(text, adds_space)) != tokenizer(text).input_ids:
            raise Problem(f"different tokens for the text {text[:40]!r}")


def as_engine_input(text: str, adds_space: bool) -> str:
    """The text as llama.cpp must be given it: it never adds the space that `add_prefix_space` asks for."""
    return f" {text}" if adds_space and text and not text.startswith(" ") else text


def check_engine(file: Path, model: PreTrainedModel, tokenizer: Any, conversations: Sequence[Messages]) -> str | None:
    """Ask llama.cpp itself for the first token of its answer to each conversation.

    `model` is what `read_gguf` made of the same file. Returns a line for the log, None without xllamacpp.
    Raises Problem when a prompt has another number of tokens, when the log-probability of one of the five
    likeliest tokens differs by more than ENGINE_TOLERANCE, or when the engine crashes.
    """
    if find_spec("xllamacpp") is None:
        return None
    done = subprocess.run(
        [sys.executable, "-c", ENGINE, str(file)],
        input=json.dumps([list(conversation) for conversation in conversations]),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if done.returncode:
        tail = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise Problem(f"llama.cpp stopped with status {done.returncode}: {tail[:200]}")
    largest_difference = 0.0
    for conversation, (count, likeliest) in zip(conversations, json.loads(done.stdout.splitlines()[-1]), strict=True):
        ids = prompt_ids(tokenizer, conversation)
        if count != len(ids):
            raise Problem(f"llama.cpp reads {count} tokens, not {len(ids)}, in {conversation[-1]['content'][:40]!r}")
        with torch.no_grad():
            expected = model(torch.tensor([ids], device=model.device)).logits[0, -1].log_softmax(-1)  # (V,)
        for token, logprob in likeliest:
            largest_difference = max(largest_difference, abs(float(expected[token]) - logprob))
    if largest_difference > ENGINE_TOLERANCE:
        raise Problem(f"llama.cpp gives other probabilities: a log-probability differs by {largest_difference:.3g}")
    return f"llama.cpp agrees: {len(conversations)} prompts, log-probabilities within {largest_difference:.2g}"


# Prints a line: per conversation the number of its tokens, and (id, log-probability) of the five likeliest next ones
ENGINE = """
import json, sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_parallel, params.warmup, params.cpuparams.n_threads = sys.argv[1], 1, False, 1
server, answers = xllamacpp.Server(params), []
for conversation in json.load(sys.stdin):
    request = {"messages": conversation, "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 5}
    answer = server.handle_chat_completions(request)
    likeliest = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    answers.append([answer["usage"]["prompt_tokens"], [[token["id"], token["logprob"]] for token in likeliest]])
print()
print(json.dumps(answers), flush=True)
"""
