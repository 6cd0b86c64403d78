"""What the stages will need on a device, from params.yaml alone: nothing is loaded, nothing is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.memory import (
    DEVICES,
    FREE,
    REACHED,
    Device,
    Shape,
    activation_bytes,
    backward_bytes,
    cache_bytes,
    checkpoint_bytes,
    logits_bytes,
    read_config,
    shape_of_config,
    spread_bytes,
    trained_bytes,
    trained_parameters,
)
from tasks.lib.stage import Problem
from tasks.lib.training.launching import PLAIN, Launch, read_launcher

STAGES = ("base", "sft", "sample", "reward", "dpo", "ppo")
LIBRARIES = 0.55e9  # bytes of a process that has imported torch, transformers and TRL on a CPU
LIGHTER = {"reward": 0.50e9}  # of a stage that imports no TRL
CPU_SPEED = 60e9  # float32 operations per second and thread that training reached on the machine of the demo


@dataclass(frozen=True)
class Need:
    """Of one stage: bytes on the device by what they are for, operations (None: not known yet), bytes on disk."""

    weights: float
    training: float  # gradients and optimiser
    activations: float
    cache: float
    operations: float | None
    disk: float

    @property
    def memory(self) -> float:
        # generation and training take turns: the larger of the two counts
        return self.weights + self.training + max(self.activations, self.cache)


def needs(params: Mapping[str, Any], shape: Shape, on_gpu: bool) -> dict[str, Need]:
    """What each stage needs of one device, as the stages are written: float32 weights, bf16 autocast on a GPU."""
    longest = params["sft"]["trainer"].get("max_length") or 1024
    found = {"base": _of_base(params["base"], shape, on_gpu), "sft": _of_sft(params["sft"], shape, on_gpu)}
    sample = params["sample"]
    rows, length = (
        sample["prompts"] * sample["answers"] * sample["oversample"],
        longest + sample["max_new_tokens"],
    )
    found["sample"] = Need(
        4.0 * shape.parameters, 0.0, 0.0, _generated(shape, min(sample["batch_size"], rows), length),
        2.0 * shape.parameters * rows * length, 0,
    )  # fmt: skip
    found["reward"] = _of_reward(params["reward"], sample, shape, longest, on_gpu)
    found["dpo"] = _of_dpo(params["dpo"], shape, on_gpu)
    found["ppo"] = _of_ppo(params["ppo"], shape, longest, on_gpu)
    return found


def launches(params: Mapping[str, Any]) -> dict[str, Launch]:
    """How many processes each stage is to run in, and what they share out."""
    return {stage: read_launcher(params[stage].get("launcher", PLAIN), stage) for stage in STAGES}


def _trained(
    shape: Shape,
    on_gpu: bool,
    launch: Launch,
    method: str,
    adapter: Mapping[str, Any],
    *,
    tokens: int,
    logit_tokens: int,
    checkpointing: bool = False,
    passes: int = 1,
    others: float = 0.0,
    others_training: float = 0.0,
    cache: float = 0.0,
    operations: float | None,
) -> Need:
    """Of a stage that trains one model on `tokens` tokens at a time; `others` are bytes of models beside it."""
    weights, state = trained_bytes(shape, method, dict(adapter), on_gpu)
    weights, state = spread_bytes(shape, weights, state, launch.processes, launch.zero)
    size = 2 if on_gpu else 4
    kept = activation_bytes(shape, tokens, size, checkpointing=checkpointing)
    return Need(
        weights=weights + others,
        training=state + others_training,
        activations=kept * passes + backward_bytes(shape, tokens, size) + logits_bytes(shape, logit_tokens),
        cache=cache,
        operations=operations,
        disk=checkpoint_bytes(shape, trained_parameters(shape, method, dict(adapter))),
    )


def _generated(shape: Shape, rows: int, length: int) -> float:
    """The KV cache of answers that are sampled side by side, and their logits."""
    return cache_bytes(shape, rows * length, 4) + 4.0 * rows * shape.vocabulary


def _of_base(section: Mapping[str, Any], shape: Shape, on_gpu: bool) -> Need:
    training = section["pretraining"]
    if not training["steps"]:  # loaded on the CPU, checked and written
        return Need(0.0, 0.0, 0.0, 0.0, 0.0, 4.0 * shape.parameters)
    tokens = training["batch_size"] * training["sequence_length"]
    operations = 6.0 * shape.parameters * tokens * training["steps"]
    alone = read_launcher(PLAIN, "base")
    return _trained(shape, on_gpu, alone, "full", {}, tokens=tokens, logit_tokens=tokens, operations=operations)


def _of_sft(section: Mapping[str, Any], shape: Shape, on_gpu: bool) -> Need:
    trainer, launch = section["trainer"], read_launcher(section.get("launcher", PLAIN), "sft")
    length = trainer.get("max_length") or 1024
    tokens = section.get("batch_tokens") or trainer.get("per_device_train_batch_size", 16) * length
    steps = trainer.get("max_steps") or _steps(trainer, tokens / length * launch.processes)
    per_token = (6.0 if section["method"] == "full" else 4.0) * shape.parameters
    return _trained(
        shape, on_gpu, launch, section["method"], section["adapter"], tokens=tokens, logit_tokens=tokens,
        checkpointing=on_gpu and trainer.get("gradient_checkpointing", True),
        operations=steps and per_token * tokens * steps * trainer.get("gradient_accumulation_steps", 1),
    )  # fmt: skip


def _of_reward(section: Mapping[str, Any], sample: Mapping[str, Any], shape: Shape, longest: int, on_gpu: bool) -> Need:
    settings, method = section["training"], section["method"]
    tokens = settings["prompts_per_step"] * sample["answers"] * longest
    per_token = {"full": 6.0, "lora": 4.0, "head": 2.0}[method] * shape.parameters
    operations = per_token * sample["prompts"] * sample["answers"] * longest * settings["epochs"]
    return _trained(
        shape, on_gpu, read_launcher(PLAIN, "reward"), "full" if method == "full" else "lora",
        section["lora"] if method == "lora" else {"r": 0}, tokens=tokens if method != "head" else 0,
        logit_tokens=0, operations=operations,
    )  # fmt: skip


def _of_dpo(section: Mapping[str, Any], shape: Shape, on_gpu: bool) -> Need:
    trainer, launch = section["trainer"], read_launcher(section.get("launcher", PLAIN), "dpo")
    tokens = 2 * trainer.get("per_device_train_batch_size", 16) * (trainer.get("max_length") or 1024)
    reference = 0.0 if section["lora"] or trainer.get("precompute_ref_log_probs") else 4.0 * shape.parameters
    per_token = (4.0 if section["lora"] else 6.0) * shape.parameters
    per_token += 2.0 * shape.parameters  # the reference's forward pass
    steps = trainer.get("max_steps")
    return _trained(
        shape, on_gpu, launch, "lora" if section["lora"] else "full", section["lora"] or {},
        tokens=tokens, logit_tokens=tokens,
        checkpointing=on_gpu and trainer.get("gradient_checkpointing", True),
        others=spread_bytes(shape, reference, 0.0, launch.processes, launch.zero)[0] if reference else 0.0,
        operations=steps and per_token * tokens * steps * trainer.get("gradient_accumulation_steps", 1),
    )  # fmt: skip


def _of_ppo(section: Mapping[str, Any], shape: Shape, longest: int, on_gpu: bool) -> Need:
    """Policy, reward model, reference (or the policy with its adapters off), critic (or a head on the policy)."""
    launch = read_launcher(section.get("launcher", PLAIN), "ppo")
    count, width = shape.parameters, section["max_new_tokens"]
    rows, length, critic = section["batch_size"], longest + width, section["critic"] == "reward"
    each = 2.0 * count * (2 + 2 + critic)  # roll-out, reward, log-probs twice, values
    each += section["epochs"] * (4.0 if section["lora"] else 6.0) * count * (1 + critic)
    return _trained(
        shape, on_gpu, launch, "lora" if section["lora"] else "full", section["lora"] or {},
        tokens=rows * length, logit_tokens=rows * width, passes=1 + critic,
        others=4.0 * count * (1 + critic + (not section["lora"])), others_training=12.0 * count * critic,
        cache=_generated(shape, rows, length),
        operations=each * section["iterations"] * section["episodes"] * length / launch.processes,
    )  # fmt: skip


def shape_of(params: Mapping[str, Any], config: Path | None) -> Shape:
    """The shape of the model that `base` will make; of a Hub model by the config.json that is named."""
    from transformers import LlamaConfig

    base = params["base"]
    if config is not None or Path(base["model"]).is_dir():
        place = config or Path(base["model"])
        try:
            return shape_of_config(read_config(place))
        except (OSError, ValueError, AttributeError) as error:
            said = str(error).splitlines()[0][:120]
            raise Problem(f"{place}: not a config.json of a causal language model: {said}") from None
    if base["model"] != "embedded":
        raise Problem(
            f"params.yaml: base.model: {base['model']} is not here; name its config.json: anneal plan --config FILE"
        )
    tiny = base["tiny"]
    return shape_of_config(
        LlamaConfig(
            vocab_size=tiny["vocab_size"],
            hidden_size=tiny["hidden"],
            num_hidden_layers=tiny["layers"],
            num_attention_heads=tiny["heads"],
            intermediate_size=tiny["feed_forward"],
            tie_word_embeddings=True,
        )
    )


def config_of(preset: Path | None) -> Path | None:
    """The config.json that lies beside a preset, in the folder of its name."""
    beside = preset.with_suffix("") / "config.json" if preset else None
    return beside if beside and beside.is_file() else None


def too_large(params: Mapping[str, Any], device: Device, on_gpu: bool, config: Path | None) -> list[str]:
    """A line per stage that does not fit; none, and a line of output, when the model's size is not known."""
    try:
        shape = shape_of(params, config)
    except Problem as problem:
        print(f"anneal: not planned: {problem}")
        return []
    return lines_of(needs(params, shape, on_gpu), device, on_gpu)[1]


def device_of(name: str, threads: int) -> tuple[Device, bool]:
    """A device by name (`cpu`: this machine), its speed as reached, and whether it is a GPU."""
    if name == "cpu":
        import psutil

        return Device(psutil.virtual_memory().total, CPU_SPEED * threads), False
    if name not in DEVICES:
        raise Problem(f"--device {name}: not known; one of cpu, {', '.join(DEVICES)}")
    return Device(DEVICES[name].memory * FREE, DEVICES[name].speed * REACHED), True


def lines_of(found: Mapping[str, Need], device: Device, on_gpu: bool) -> tuple[list[str], list[str]]:
    """A table, and the stages that do not fit."""
    columns = ("weights", "training", "activations", "KV cache", "memory", "FLOPs", "time", "disk")
    lines, too_large = [f"{'':8}" + "".join(f"{column:>12}" for column in columns)], []
    for stage, need in found.items():
        memory = need.memory + (0 if on_gpu else LIGHTER.get(stage, LIBRARIES))
        if memory > device.memory:
            too_large.append(f"{stage} needs {_bytes(memory)}, the device has {_bytes(device.memory)}")
        unknown = need.operations is None
        cells = [_bytes(need.weights), _bytes(need.training), _bytes(need.activations), _bytes(need.cache)]
        cells += [_bytes(memory) + ("" if memory <= device.memory else " !")]
        cells += ["?" if unknown else f"{need.operations:.1e}"]
        cells += ["?" if unknown else _time((need.operations or 0) / device.speed), _bytes(need.disk)]
        lines.append(f"{stage:8}" + "".join(f"{cell:>12}" for cell in cells))
    return lines, too_large


def _steps(trainer: Mapping[str, Any], batch: float) -> float | None:
    """Optimiser steps of the given epochs, `batch` rows side by side in all processes, once the rows are there."""
    rows = Path("data/curated/train.parquet")
    if not rows.is_file():
        return None
    import pyarrow.parquet

    count = pyarrow.parquet.ParquetFile(rows).metadata.num_rows
    step = batch * trainer.get("gradient_accumulation_steps", 1)
    return float(trainer.get("num_train_epochs", 3.0)) * count / step


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return "-" if not count else f"{count / 1e3:.0f} kB"


def _time(seconds: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "-"
