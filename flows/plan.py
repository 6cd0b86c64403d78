"""What the stages will need on a device, from params.yaml alone: nothing is loaded, nothing is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.lib.policy import planning
from tasks.lib.policy.planning import DEVICES, FREE, REACHED, Device, Shape
from tasks.lib.stage import Problem

STAGES = ("base", "sft", "sample", "reward", "dpo", "ppo")
LIBRARIES = 0.55e9  # bytes of a process that has imported torch, transformers and TRL on a CPU
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
    size = 2 if on_gpu else 4
    count, found = shape.parameters, dict[str, Need]()
    longest = params["sft"]["trainer"].get("max_length") or 1024

    def trained(
        method: str, adapter: dict[str, Any], tokens: int, logit_tokens: int, checkpointing: bool, **more: Any
    ) -> Need:
        weights, state = planning.trained_bytes(shape, method, adapter, on_gpu)
        kept = planning.activation_bytes(shape, tokens, size, checkpointing=checkpointing)
        moved = planning.trained_parameters(shape, method, adapter)
        return Need(
            weights=weights + more.get("others", 0.0),
            training=state + more.get("others_training", 0.0),
            activations=kept * more.get("passes", 1) + planning.logits_bytes(shape, logit_tokens),
            cache=more.get("cache", 0.0),
            operations=more.get("operations"),
            disk=planning.checkpoint_bytes(shape, moved),
        )

    def answered(rows: int, length: int) -> float:
        return planning.cache_bytes(shape, rows * length, 4) + 4.0 * rows * shape.vocabulary

    base, sft, sample, reward, dpo, ppo = (params[stage] for stage in STAGES)
    training = base["pretraining"]
    tokens = training["batch_size"] * training["sequence_length"]
    if training["steps"]:
        operations = 6.0 * count * tokens * training["steps"]
        found["base"] = trained("full", {}, tokens, tokens, False, operations=operations)
    else:  # loaded on the CPU, checked and written
        found["base"] = Need(0.0, 0.0, 0.0, 0.0, 0.0, 4.0 * count)

    trainer = sft["trainer"]
    tokens = trainer.get("per_device_train_batch_size", 16) * longest
    steps = trainer.get("max_steps") or _steps(Path("data/curated/train.parquet"), trainer)
    per_token = (6.0 if sft["method"] == "full" else 4.0) * count
    found["sft"] = trained(
        sft["method"], sft["adapter"], tokens, tokens, on_gpu and trainer.get("gradient_checkpointing", True),
        operations=steps and per_token * tokens * steps * trainer.get("gradient_accumulation_steps", 1),
    )  # fmt: skip

    rows = sample["prompts"] * sample["answers"] * sample["oversample"]
    batch = min(sample.get("batch_size", 64), rows)
    cache = answered(batch, longest + sample["max_new_tokens"])
    found["sample"] = Need(
        4.0 * count, 0.0, 0.0, cache, 2.0 * count * rows * (longest + sample["max_new_tokens"]), 0
    )

    settings = reward["training"]
    tokens = settings["prompts_per_step"] * sample["answers"] * longest
    operations = 6.0 * count * sample["prompts"] * sample["answers"] * longest * settings["epochs"]
    found["reward"] = trained("full", {}, tokens, 0, False, operations=operations)

    trainer = dpo["trainer"]
    length = trainer.get("max_length") or 1024
    tokens = 2 * trainer.get("per_device_train_batch_size", 16) * length
    method = "lora" if dpo["lora"] else "full"
    apart = 0.0 if dpo["lora"] or trainer.get("precompute_ref_log_probs") else 4.0 * count
    per_token = (6.0 if method == "full" else 4.0) * count + 2.0 * count  # and the reference's forward pass
    found["dpo"] = trained(
        method, dpo["lora"] or {}, tokens, tokens, on_gpu and trainer.get("gradient_checkpointing", True),
        others=apart,
        operations=per_token * tokens * trainer["max_steps"] if trainer.get("max_steps") else None,
    )  # fmt: skip

    width = ppo["max_new_tokens"]
    rows, apart_critic = ppo["batch_size"], ppo["critic"] == "reward"
    length = longest + width
    others = 4.0 * count * (1 + apart_critic + (not ppo["lora"]))  # reward model, critic, reference
    each = 2.0 * count * (2 + 2 + apart_critic)  # roll-out, reward, log-probs twice, values
    each += ppo["epochs"] * (4.0 if ppo["lora"] else 6.0) * count * (1 + apart_critic)
    found["ppo"] = trained(
        "lora" if ppo["lora"] else "full", ppo["lora"] or {}, rows * length, rows * width, False, others=others,
        others_training=12.0 * count * apart_critic, passes=1 + apart_critic, cache=answered(rows, length),
        operations=each * ppo["iterations"] * ppo["episodes"] * length,
    )  # fmt: skip
    return found


def shape_of(params: Mapping[str, Any], config: Path | None) -> Shape:
    """The shape of the model that `base` will make; of a Hub model by the config.json that is named."""
    from transformers import LlamaConfig

    base = params["base"]
    if config is not None or Path(base["model"]).is_dir():
        place = config or Path(base["model"])
        try:
            return planning.shape_of(planning.read_config(place))
        except (OSError, ValueError, AttributeError) as error:
            said = str(error).splitlines()[0][:120]
            raise Problem(f"{place}: not a config.json of a causal language model: {said}") from None
    if base["model"] != "embedded":
        raise Problem(
            f"params.yaml: base.model: {base['model']} is not here; name its config.json: anneal plan --config FILE"
        )
    tiny = base["tiny"]
    return planning.shape_of(
        LlamaConfig(
            vocab_size=tiny["vocab_size"],
            hidden_size=tiny["hidden"],
            num_hidden_layers=tiny["layers"],
            num_attention_heads=tiny["heads"],
            intermediate_size=tiny["feed_forward"],
            tie_word_embeddings=True,
        )
    )


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
        memory = need.memory + (0 if on_gpu else LIBRARIES)
        if memory > device.memory:
            too_large.append(f"{stage} needs {_bytes(memory)}, the device has {_bytes(device.memory)}")
        unknown = need.operations is None
        cells = [_bytes(need.weights), _bytes(need.training), _bytes(need.activations), _bytes(need.cache)]
        cells += [_bytes(memory) + ("" if memory <= device.memory else " !")]
        cells += ["?" if unknown else f"{need.operations:.1e}"]
        cells += ["?" if unknown else _time((need.operations or 0) / device.speed), _bytes(need.disk)]
        lines.append(f"{stage:8}" + "".join(f"{cell:>12}" for cell in cells))
    return lines, too_large


def _steps(rows: Path, trainer: Mapping[str, Any]) -> float | None:
    """Optimiser steps of the given epochs, once the rows are there."""
    if not rows.is_file():
        return None
    import pyarrow.parquet

    count = pyarrow.parquet.ParquetFile(rows).metadata.num_rows
    batch = trainer.get("per_device_train_batch_size", 16) * trainer.get("gradient_accumulation_steps", 1)
    return float(trainer.get("num_train_epochs", 3.0)) * count / batch


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
