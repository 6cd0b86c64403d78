"""Rewards for rows of prompts and answers, and how often they order known preferences right."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.lib.data.rows import Row, read_table
from tasks.lib.importers.cleaning import cleaned
from tasks.lib.importers.formats import read_export
from tasks.lib.importers.rankings import field_of, is_list_of_texts, prompt_of
from tasks.lib.importers.ratings import ANSWERS
from tasks.lib.models.chat import answer_ids, load_tokenizer, prompt_ids
from tasks.lib.reward.ensemble import disagreement
from tasks.lib.reward.heldout_report import accuracy_by_source
from tasks.lib.reward.reward_model import attributes_of, heads_of, load_reward, raw_outputs, room_of
from tasks.lib.stage import Problem

AT_A_TIME = 1024  # rows read, scored and written before the next are read


def read_rows(file: str) -> Iterator[tuple[str, Row]]:
    """(where, row) of a file, or of lines of JSON on standard input when it is `-`."""
    if file != "-":
        for number, read in read_table(Path(file)):
            yield f"{file}:{number}", read
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
    of attributes adds what it predicts of each, under its name."""
    model, tokenizer = load_reward(folder), load_tokenizer(folder)
    waiting = iter(rows)
    while chunk := list(islice(waiting, AT_A_TIME)):
        sequences: list[list[int]] = []
        counts = []  # of the answers of each row
        for where, row in chunk:
            of_row = _sequences(model, tokenizer, where, row)
            sequences += of_row
            counts.append(len(of_row))
        raw = raw_outputs(model, sequences, batch_size=batch_size)
        for (_, row), outputs in zip(chunk, raw.split(counts), strict=True):
            yield row | _scores(model, row, outputs)


def _sequences(model: Any, tokenizer: Any, where: str, row: Row) -> list[list[int]]:
    """Ids of prompt, answer and EOS for every answer of a row; Problem when one does not fit the model."""
    room = room_of(model)
    answers = _answers(where, row)
    prompt = prompt_ids(tokenizer, prompt_of(where, row))
    sequences = [prompt + answer_ids(tokenizer, answer) for answer in answers]
    longest = max(sequences, key=len)
    if room and len(longest) > room:
        raise Problem(f"{where}: prompt and answer are longer than the model's {room} tokens")
    return sequences


def _scores(model: Any, row: Row, outputs: Tensor) -> Row:
    """The fields that a row gets, from the model's outputs (K, N) for its K answers."""
    attributes = getattr(model.config, "reward_attributes", [])
    predicted = attributes_of(model, outputs).T.tolist()  # by attribute, by answer
    by_head = heads_of(model, outputs)
    if "answers" in row:
        return _of_answers(model, by_head) | dict(zip(attributes, predicted, strict=True))
    scores = _of_answer(model, by_head)
    for name, (value,) in zip(attributes, predicted, strict=True):
        scores[name] = value
    return scores


def _answers(where: str, row: Row) -> list[str]:
    name = field_of(row, ("answers", *ANSWERS)) or "answer"
    texts = row.get(name) if name == "answers" else [row.get(name)]
    if not texts or not is_list_of_texts(texts):
        raise Problem(f"{where}:{name}: expected an answer as text, or `answers`, found {str(texts)[:60]!r}")
    return texts


def _of_answer(model: Any, by_head: Tensor) -> Row:
    """The fields of one answer, from its raw rewards (1, heads)."""
    mean, std = model.config.reward_mean, model.config.reward_std
    scores: Row = {"reward": (by_head.mean().item() - mean) / std}
    if by_head.shape[1] > 1:
        centred = by_head.double() - torch.tensor(model.config.reward_head_means, dtype=torch.float64)
        scores["disagreement"] = centred.std(correction=0).item() / std
    return scores


def _of_answers(model: Any, by_head: Tensor) -> Row:
    """The fields of the answers to one prompt, from their raw rewards (K, heads)."""
    raw = by_head.mean(-1).double()
    temperature = getattr(model.config, "reward_temperature", None)
    scores: Row = {"rewards": ((raw - model.config.reward_mean) / model.config.reward_std).tolist()}
    if temperature is not None:
        scores["probabilities"] = (raw / temperature).softmax(0).tolist()
    if by_head.shape[1] > 1:
        scores["disagreement"] = disagreement(by_head, temperature or 1.0)
    return scores


def accuracy(folder: Path, file: Path, batch_size: int = 64) -> dict[str, tuple[float, int]]:
    """source -> (share of pairs ordered right, pairs) of a file of preferences. Problem when no pair fits the model."""
    model, tokenizer = load_reward(folder), load_tokenizer(folder)
    rows, _, _ = cleaned(read_export(file), "unknown")
    shares = accuracy_by_source(model, tokenizer, rows, batch_size)
    if not shares:
        raise Problem(f"{file}: no ordered pair of answers fits the model's {room_of(model)} tokens")
    return shares
