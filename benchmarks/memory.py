"""Memory and CPU seconds of the stages on a model folder, with made-up rows of realistic lengths.

Every stage runs as `python -m tasks.<stage>` in a folder of its own data: a few steps of eight rows of at most 256
tokens, LoRA of rank 16, AdamW. Peak: the largest resident set of the process; CPU s: its user and system seconds.
`trl` trains the rows of `sft` by TRL's SFTTrainer as it is, which checkpoints; `trl_fast` does without checkpoints.

Run     python -m benchmarks.memory MODEL_FOLDER [STAGE ...] [--set KEY=VALUE ...]
        a folder of SmolLM2-135M on two cores: about a minute per stage
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tasks.lib.data.rows import CANDIDATE, INSTRUCTION, RANKING, Row, content_id, write_parquet
from tasks.lib.stage import read_yaml

ROOT = Path(__file__).resolve().parents[1]
STAGES = ["sft", "reward", "dpo", "ppo", "evaluate", "sample", "distill", "release"]
TRL = ["trl", "trl_fast"]
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
ROWS = 8  # of a step
TRAINER = {
    "max_length": 256, "max_steps": 2, "per_device_train_batch_size": ROWS, "per_device_eval_batch_size": ROWS,
    "learning_rate": 1e-4, "warmup_steps": 0, "eval_steps": 2, "save_steps": 1000,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {
        "optimizer": "trainer", "method": "lora", "adapter": LORA, "preview_rows": 0,
        "trainer": TRAINER | {"num_train_epochs": 1.0},
    },
    "reward": {
        "method": "lora", "lora": LORA, "reference_prompts": 8, "require_above_chance": False,
        "training": {"epochs": 1, "prompts_per_step": ROWS, "learning_rate": 1e-4},
    },
    "dpo": {"lora": LORA, "samples": 8, "max_new_tokens": 64, "trainer": TRAINER | {"beta": 0.1}},
    "ppo": {
        "lora": LORA, "iterations": 1, "episodes": 64, "epochs": 1, "max_new_tokens": 48, "judge": "reward",
        "validation_prompts": 16, "learning_rate": 1e-4, "batch_size": ROWS, "missing_eos": "keep",
    },
    "evaluate": {
        "models": ["sft", "dpo"], "judge": "none", "reward": False, "max_new_tokens": 48, "kl_prompts": 16,
        "limit_per_split": 64, "bootstrap_draws": 100, "others": "data/raw/models",
    },
    "sample": {"prompts": 24, "max_new_tokens": 48},
    "distill": {
        "judge": "none", "max_prompts": 48, "evaluation_rows": 16, "max_new_tokens": 64,
        "training": {"batch_size": 32, "epochs": 1, "on_policy": 0.25},
    },
    "release": {"judge": "none", "rows_per_split": 48, "max_new_tokens": 48},
}  # fmt: skip


def words(draw: random.Random, count: int) -> str:
    """So many words of the embedded text: about as many tokens."""
    lines = (ROOT / "data/raw/text.txt").read_text(encoding="utf-8").split("\n")[:4000]
    text: list[str] = []
    while len(text) < count:
        text += draw.choice(lines).split()
    return " ".join(text[:count])


def instruction(draw: random.Random, number: int, split: str) -> Row:
    """A prompt of 60 to 150 words, with an answer of 10 to 60 words."""
    prompt, answer = words(draw, draw.randint(60, 150)), words(draw, draw.randint(10, 60))
    return {
        "id": content_id(prompt, number), "source": "made-up", "license": "CC0-1.0", "cluster": "text", "task": "write",
        "template": "plain", "split": split, "answer": answer, "label": answer, "row": content_id(prompt),
        "messages": [{"role": "user", "content": prompt}], "choices": None, "text": prompt, "measure": "exact",
    }  # fmt: skip


def ranking(draw: random.Random, number: int) -> Row:
    """A prompt of 60 to 150 words with 4 to 6 answers of 10 to 60 words, in a random order."""
    prompt = [{"role": "user", "content": words(draw, draw.randint(60, 150))}]
    answers = [words(draw, draw.randint(10, 60)) for _ in range(draw.randint(4, 6))]
    return {
        "id": content_id(number), "prompt": prompt, "answers": answers, "ranks": [*range(len(answers))],
        "annotator": "ada", "strength": None, "source": "made-up", "license": "CC0-1.0",
    }  # fmt: skip


def candidate(draw: random.Random, number: int) -> Row:
    made = ranking(draw, number)
    return {
        "id": made["id"], "prompt": made["prompt"], "answers": made["answers"], "instruction": "", "model": "",
        "sampling": "{}",
    }  # fmt: skip


def write_data() -> None:
    """The rows of all stages, in the current folder."""
    draw = random.Random(0)
    counts = {"train": 24, "validation": 8, "policy": 96, "preference": 32}
    for split, count in counts.items():
        rows = [instruction(draw, number, split) for number in range(count)]
        write_parquet(Path(f"data/curated/{split}.parquet"), rows, INSTRUCTION)
    rows = [instruction(draw, number, "rows") for number in range(64)]
    write_parquet(Path("data/curated/evaluation.parquet"), rows, INSTRUCTION)
    for split, count in {"train": 2 * ROWS, "heldout": ROWS}.items():
        rankings = [ranking(draw, 1000 * count + number) for number in range(count)]
        write_parquet(Path(f"data/preferences/{split}.parquet"), rankings, RANKING)
    candidates = [candidate(draw, number) for number in range(16)]
    write_parquet(Path("data/candidates/candidates.parquet"), candidates, CANDIDATE)


def write_workspace(model: Path, overrides: list[str]) -> None:
    """Data, params.yaml and models of the current folder, every model the given one."""
    write_data()
    Path("models").mkdir()
    Path("data/raw/models").mkdir(parents=True)
    for name in ("base", "sft", "dpo", "policy", "student"):
        Path("models", name).symlink_to(model.resolve())
    params = read_yaml(ROOT / "params.yaml")
    for stage, settings in SETTINGS.items():
        section = params[stage]
        trainers = {"trainer", "training"} & settings.keys()
        section |= {key: value for key, value in settings.items() if key not in trainers}
        for key in trainers:
            section[key] = settings[key] if key == "trainer" else section[key] | settings[key]
    for override in overrides:
        dotted, _, value = override.partition("=")
        *path, last = dotted.split(".")
        section = params
        for key in path:
            section = section[key]
        section[last] = YAML(typ="safe").load(value)
    YAML().dump(params, Path("params.yaml"))


def measured(command: list[str], quiet: bool) -> tuple[int, float, float]:
    """Exit status, peak resident set in GB and CPU seconds of a command."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    output = [(os.POSIX_SPAWN_OPEN, 1, "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)] if quiet else []
    pid = os.posix_spawn(command[0], command, environment, file_actions=output)
    _, status, usage = os.wait4(pid, 0)
    return status, usage.ru_maxrss / 1e6, usage.ru_utime + usage.ru_stime


def train_by_trl(checkpointing: bool) -> None:
    """The steps of `sft` by TRL's own trainer, from the current folder; in float32."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from tasks.lib.models.chat import load_tokenizer
    from tasks.lib.models.loading import load_policy
    from tasks.sft import TRAIN, tokenized_instructions

    torch.set_num_threads(read_yaml(Path("params.yaml"))["threads"])
    given = read_yaml(Path("params.yaml"))["sft"]["trainer"] | {"eval_strategy": "no", "report_to": "none"}
    config = SFTConfig(
        "trl", **given, use_cpu=True, bf16=False, gradient_checkpointing=checkpointing, remove_unused_columns=False
    )
    tokenizer = load_tokenizer("models/base")
    rows, _ = tokenized_instructions(tokenizer, TRAIN, given["max_length"])
    columns = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows]
    SFTTrainer(
        model=load_policy("models/base"),
        args=config,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(columns),
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
    ).train()


def command_of(name: str) -> list[str]:
    if name not in TRL:
        return [sys.executable, "-m", f"tasks.{name}"]
    checkpointing = name == "trl"
    return [sys.executable, "-c", f"from benchmarks.memory import train_by_trl; train_by_trl({checkpointing})"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("stages", nargs="*", default=STAGES)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--show", action="store_true", help="show what the stages print")
    given = parser.parse_args()
    stages = list(given.stages)
    if "ppo" in stages and "reward" not in stages[: stages.index("ppo")]:
        stages.insert(stages.index("ppo"), "reward")  # its model is what ppo learns from
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_workspace(given.model, given.set)
        print(f"{'stage':10} {'peak GB':>8} {'CPU s':>8}", flush=True)
        for stage in stages:
            status, peak, seconds = measured(command_of(stage), quiet=not given.show)
            failed = "" if status == 0 else f"   failed with status {os.waitstatus_to_exitcode(status)}"
            print(f"{stage:10} {peak:8.2f} {seconds:8.1f}{failed}", flush=True)
        os.chdir(ROOT)


if __name__ == "__main__":
    main()
