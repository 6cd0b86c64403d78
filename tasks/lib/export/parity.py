"""How far an exported format is from the model it was made of: logits, answers, tokens.

A GGUF file is judged by what is in it: its dequantised weights in transformers' Llama, its own vocabulary.
With the extra `engine` (xllamacpp: llama.cpp as a wheel) llama.cpp itself is asked too, in a child process
that may crash.
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

from tasks.lib.export.distillation import logits_on
from tasks.lib.export.gguf_file import read_gguf
from tasks.lib.export.gguf_vocabulary import Vocabulary, adds_prefix_space
from tasks.lib.export.quantisation import read_model
from tasks.lib.models.chat import Messages, load_tokenizer, prompt_ids
from tasks.lib.stage import Problem

ENGINE_TOLERANCE = 0.3  # nats; llama.cpp keeps its cache in f16 and rounds activations for q8_0
ODD_TEXTS = (
    "", " ", "   three spaces", "ends in spaces   ", "tab\tand\r\nline\n\nends\n", "don't we'll I'M 'quoted'",
    "1234567890 3.14159 1e-5", "naïve café Ελληνικά русский", "中文 日本語 한국어 ไทย", "عربى עברית",
    "👩‍👩‍👧 🇪🇺 e\u0301", "zero\u200bwidth\u00a0no-break\u3000wide", "_under-score--dashes... !!??",
    "{{ braces }} <tag>", "x" * 200, "aAaA" * 20, "\x00\x01\x7f",
)  # fmt: skip


def read_format(folder: Path) -> tuple[PreTrainedModel, Vocabulary | None]:
    """Load one exported format as its users would; with its vocabulary if it is a GGUF file."""
    files = sorted(folder.glob("*.gguf"))
    return read_gguf(files[0]) if files else (read_model(folder), None)


@torch.no_grad()
def drift(
    reference: PreTrainedModel,
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    answers: Sequence[list[int]],
    batch_size: int,
) -> dict[str, float]:
    """Differences over all tokens of the given answers (those of the reference).

    max and mean |logit difference|; mean KL(reference || model) in nats per token; the share of tokens whose
    most probable successor is the same. Raises Problem when a logit is not finite.
    """
    most, total, divergence, alike, tokens, values = 0.0, 0.0, 0.0, 0, 0, 0
    for start in range(0, len(prompts), batch_size):
        some = prompts[start : start + batch_size], answers[start : start + batch_size]
        wanted, is_answer, _ = logits_on(reference, *some)
        found, _, _ = logits_on(model, *some)
        wanted, found = wanted[is_answer].double(), found[is_answer].double()
        if not bool(torch.isfinite(found).all()):
            raise Problem("logits that are not finite")
        difference = (wanted - found).abs()
        log_wanted, log_found = wanted.log_softmax(-1), found.log_softmax(-1)
        most = max(most, difference.max().item())
        total, values = total + difference.sum().item(), values + difference.numel()
        divergence += (log_wanted.exp() * (log_wanted - log_found)).sum().item()
        alike += int((wanted.argmax(-1) == found.argmax(-1)).sum())
        tokens += len(wanted)
    return {
        "max_logit_error": most,
        "mean_logit_error": total / max(values, 1),
        "kl": max(divergence, 0.0) / max(tokens, 1),
        "agreement": alike / max(tokens, 1),
    }


def check_tokens(
    tokenizer: Any,
    folder: Path,
    vocabulary: Vocabulary | None,
    talks: Sequence[Messages],
    texts: Sequence[str],
) -> None:
    """Raise Problem when a format would cut a conversation or a text into other tokens than the model."""
    if vocabulary is None:
        same = load_tokenizer(folder).backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
        if not same:
            raise Problem("another tokenizer than the model's")
        return
    if vocabulary.chat_template:
        for talk in talks:
            text = tokenizer.apply_chat_template(
                list(talk),
                chat_template=vocabulary.chat_template,
                add_generation_prompt=True,
                tokenize=False,
            )
            if vocabulary.encode(text, add_special=False) != prompt_ids(tokenizer, talk):
                raise Problem(f"other tokens for the conversation that starts {talk[0]['content'][:40]!r}")
    adds_space = adds_prefix_space(tokenizer)  # reads the whole tokenizer
    for text in (*texts, *ODD_TEXTS):
        if vocabulary.encode(as_engine_input(text, adds_space)) != tokenizer(text).input_ids:
            raise Problem(f"other tokens for the text {text[:40]!r}")


def as_engine_input(text: str, adds_space: bool) -> str:
    """The text as llama.cpp must be given it: it never adds the space that `add_prefix_space` asks for."""
    return f" {text}" if adds_space and text and not text.startswith(" ") else text


def check_engine(file: Path, model: PreTrainedModel, tokenizer: Any, talks: Sequence[Messages]) -> str | None:
    """Ask llama.cpp itself for the first token of its answer to each conversation.

    `model` is what `read_gguf` made of the same file. Returns a line for the log, None without xllamacpp.
    Raises Problem when a prompt has another number of tokens, when the log-probability of one of the five
    likeliest tokens differs by more than ENGINE_TOLERANCE, or when the engine crashes.
    """
    if find_spec("xllamacpp") is None:
        return None
    done = subprocess.run(
        [sys.executable, "-c", ENGINE, str(file)],
        input=json.dumps([list(talk) for talk in talks]),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if done.returncode:
        tail = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise Problem(f"llama.cpp stopped with status {done.returncode}: {tail[:200]}")
    most = 0.0
    for talk, (count, best) in zip(talks, json.loads(done.stdout.splitlines()[-1]), strict=True):
        ids = prompt_ids(tokenizer, talk)
        if count != len(ids):
            raise Problem(f"llama.cpp reads {count} tokens, not {len(ids)}, in {talk[-1]['content'][:40]!r}")
        with torch.no_grad():
            expected = model(torch.tensor([ids], device=model.device)).logits[0, -1].log_softmax(-1)
        most = max(most, *(abs(float(expected[index]) - logprob) for index, logprob in best))
    if most > ENGINE_TOLERANCE:
        raise Problem(f"llama.cpp gives other probabilities: a log-probability differs by {most:.3g}")
    return f"llama.cpp agrees: {len(talks)} prompts, log-probabilities within {most:.2g}"


ENGINE = """
import json, sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_parallel, params.warmup, params.cpuparams.n_threads = sys.argv[1], 1, False, 1
server, told = xllamacpp.Server(params), []
for talk in json.load(sys.stdin):
    asked = {"messages": talk, "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 5}
    answer = server.handle_chat_completions(asked)
    best = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    told.append([answer["usage"]["prompt_tokens"], [[token["id"], token["logprob"]] for token in best]])
print()
print(json.dumps(told), flush=True)
"""
