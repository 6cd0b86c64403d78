"""Claims about the base stage: the embedded model, models taken in, killed and resumed runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from sections import section

from tasks.base import run
from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.loading import load_policy
from tasks.lib.stage import Problem, Stage

PARAMS: dict[str, Any] = {
    "model": "embedded",
    "revision": None,
    "template_date": "2026-01-01",
    "system_role": "merge",
    "text": "text.txt",
    "tiny": {
        "vocab_size": 320, "hidden": 16, "layers": 2, "heads": 2, "feed_forward": 32, "context": 32, "rope_theta": 100.0
    },
    "pretraining": {
        "steps": 12, "batch_size": 4, "sequence_length": 16, "learning_rate": 5e-3, "warmup": 2,
        "heldout_blocks": 4, "save_every": 4,
    },
}  # fmt: skip


@pytest.fixture
def world(workspace: Path) -> Path:
    words = product(("big", "small"), ("cat", "dog", "hen"), ("hut", "den"))
    lines = [f" the {size} {animal} sat in the {place} ." for size, animal, place in words]
    (workspace / "text.txt").write_text("\n".join(lines * 12) + "\n")
    return workspace


def weights(folder: Path) -> bytes:
    return (folder / "models/base/model.safetensors").read_bytes()


def test_the_embedded_model_learns_its_text_and_knows_the_chat(world: Path) -> None:
    run(section("base", **PARAMS), Stage("base", seed=3))
    figures = json.loads(Path("reports/base.json").read_text())
    assert figures["perplexity"] < figures["perplexity_before"] / 2
    tokenizer = load_tokenizer(Path("models/base"))
    assert "{% generation %}" in tokenizer.chat_template
    assert tokenizer.decode(tokenizer(" the cat<|end|>")["input_ids"]) == " the cat<|end|>"
    assert load_policy(Path("models/base")).config.tie_word_embeddings
    assert not Path(".anneal/checkpoints/base").exists()


def test_a_folder_is_taken_in_as_it_is_or_trained_further(world: Path) -> None:
    run(section("base", **PARAMS), Stage("base", seed=3))
    first = weights(world)
    Path("models/base").rename("given")
    still = PARAMS["pretraining"] | {"steps": 0}
    run(section("base", **PARAMS | {"model": "given", "pretraining": still}), Stage("base", seed=4))
    assert weights(world) == first
    run(section("base", **PARAMS | {"model": "given"}), Stage("base", seed=4))
    assert weights(world) != first


KILLED = """
import os, signal
from tasks import base
from tasks.lib.training.checkpoints import Checkpoint
save = Checkpoint.save
def save_and_die(self, *arguments):
    save(self, *arguments)
    os.kill(os.getpid(), signal.SIGKILL)
Checkpoint.save = save_and_die
base.main("base.py", base.Params, base.run)
"""
STOPPED = """
import os, signal
from tasks import base
def ask_to_stop(self, step, total, **figures):
    if step == 5:
        os.kill(os.getpid(), signal.SIGTERM)
base.Stage.progress = ask_to_stop
base.main("base.py", base.Params, base.run)
"""


@pytest.mark.parametrize(
    ("program", "status", "step"), [(KILLED, -signal.SIGKILL, 4), (STOPPED, 128 + signal.SIGTERM, 5)]
)
def test_interrupted_in_the_middle_it_ends_in_the_same_bytes(world: Path, program: str, status: int, step: int) -> None:
    """SIGKILL after the first checkpoint, SIGTERM in a step without one; the second run says that it goes on."""
    Path("params.yaml").write_text(json.dumps({"seed": 3, "threads": 1, "base": PARAMS}))
    command = [sys.executable, "-m", "tasks.base"]
    subprocess.run(command, check=True, capture_output=True)
    whole = weights(world)
    interrupted = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert interrupted.returncode == status and Path(".anneal/checkpoints/base/checkpoint.safetensors").exists()
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert f"continuing after step {step} of 12" in again.stdout
    assert weights(world) == whole


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text": "absent.txt"}, "absent.txt does not exist"),
        ({"model": "no/such model"}, "no such folder"),
        ({"model": "org/model"}, "needs a fixed revision"),
        ({"pretraining": PARAMS["pretraining"] | {"heldout_blocks": 10_000}}, "too few"),
    ],
)
def test_bad_input_is_one_clear_line(world: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(Problem, match=said):
        run(section("base", **PARAMS | change), Stage("base", seed=3))
