"""Rewards for rows of prompts and answers, and how often they order known preferences right."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from tasks.lib.data.rows import read_table
from tasks.lib.importers.cleaning import cleaned
from tasks.lib.importers.formats import read_export
from tasks.lib.importers.rankings import prompt_of
from tasks.lib.importers.ratings import ANSWERS
from tasks.lib.models.chat import answer_ids, load_tokenizer, prompt_ids
from tasks.lib.reward.ensemble import disagreement
from tasks.lib.reward.heldout_report import accuracy_by_source
from tasks.lib.reward.reward_model import attributes_of, heads_of, load_reward, raw_outputs, room_of
from tasks.lib.stage import Problem

Row = dict[str, Any]
AT_A_TIME = 1024  # rows read, scored and written before the next are read


def read_rows(file: str) -> Iterator[tuple[str, Row]]:
    """(where, row) of a file, or of lines of JSON on standard input when it is `-`."""
    if file != "-":
        yield from ((f"{file}:{number}", row) for number, row in read_table(Path(file)))
        return
    for number, line in enumerate(sys.stdin, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise Problem(f"stdin:{number}: expected a row as JSON, found {line[:60]!r}")
        yield f"stdin:{number}", row


def scored(folder: Path, rows: Iterable[tuple[str, Row]], batch_size: int = 64) -> Iterator[Row]:
    """The rows with their rewards: {prompt, answer} gets `reward`; {prompt, answers} gets `rewards` and, with
    the temperature that the model was calibrated to, `probabilities` of being the best of these answers. An
    ensemble adds `disagreement`: the heads' standard deviation, of the reward, or of a pair's probability. A model
    of attributes adds what it says of each, under its name."""
    model, tokenizer = load_reward(folder), load_tokenizer(folder)
    room = room_of(model)
    attributes = getattr(model.config, "reward_attributes", [])
    waiting = iter(rows)
    while chunk := list(islice(waiting, AT_A_TIME)):
        sequences, counts = [], []
        for where, row in chunk:
            texts = _answers(where, row)
            start = prompt_ids(tokenizer, prompt_of(where, row))
            for text in texts:
                sequences.append([*start, *answer_ids(tokenizer, text)])
                if room and len(sequences[-1]) > room:
                    raise Problem(f"{where}: prompt and answer are longer than the model's {room} tokens")
            counts.append(len(texts))
        found = raw_outputs(model, sequences, batch_size=batch_size)
        for (_, row), of_row in zip(chunk, found.split(counts), strict=True):
            said = (_of_answers if "answers" in row else _of_answer)(model, heads_of(model, of_row))
            for name, values in zip(attributes, attributes_of(model, of_row).T.tolist(), strict=True):
                said[name] = values if "answers" in row else values[0]
            yield {**row, **said}


def _answers(where: str, row: Row) -> list[str]:
    name = "answers" if "answers" in row else next((name for name in ANSWERS if name in row), "answer")
    texts = row.get(name) if name == "answers" else [row.get(name)]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise Problem(f"{where}:{name}: expected an answer as text, or `answers`, found {str(texts)[:60]!r}")
    return texts


def _of_answer(model: Any, by_head: torch.Tensor) -> Row:
    """What is said of one answer, from its raw rewards (1, heads)."""
    mean, std = model.config.reward_mean, model.config.reward_std
    said: Row = {"reward": (by_head.mean().item() - mean) / std}
    if by_head.shape[1] > 1:
        centred = by_head.double() - torch.tensor(model.config.reward_head_means, dtype=torch.float64)
        said["disagreement"] = centred.std(correction=0).item() / std
    return said


def _of_answers(model: Any, by_head: torch.Tensor) -> Row:
    """What is said of the answers to one prompt, from their raw rewards (K, heads)."""
    raw = by_head.mean(-1).double()
    temperature = getattr(model.config, "reward_temperature", None)
    said: Row = {"rewards": ((raw - model.config.reward_mean) / model.config.reward_std).tolist()}
    if temperature is not None:
        said["probabilities"] = (raw / temperature).softmax(0).tolist()
    if by_head.shape[1] > 1:
        said["disagreement"] = disagreement(by_head, temperature or 1.0)
    return said


def accuracy(folder: Path, file: Path, batch_size: int = 64) -> dict[str, tuple[float, int]]:
    """source -> (share of pairs ordered right, pairs) of a file of preferences. Problem when no pair fits the model."""
    model, tokenizer = load_reward(folder), load_tokenizer(folder)
    rows, _, _ = cleaned(read_export(file), "unknown")
    if not (found := accuracy_by_source(model, tokenizer, rows, batch_size)):
        raise Problem(f"{file}: no ordered pair of answers fits the model's {room_of(model)} tokens")
    return found
