"""What the stages will need on a device, from params.yaml alone: no weights are loaded and nothing is run.

The formulas are in memory.py; here is which of them each stage needs, as the stages are written: what is trained is in
float32, other weights are as `precision` keeps them, passes are in bf16 on a GPU or where weights are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flows import memory
from flows.memory import Arithmetic, Device, Shape
from flows.need import Need
from flows.plan_export import of_distill, of_evaluate, of_quantize, of_release
from tasks.lib.sections import read_sections as validated_sections
from tasks.lib.settings import base, distill, dpo, evaluate, ppo, quantize, release, reward, sample, sft
from tasks.lib.settings.methods import PEFT
from tasks.lib.stage import PRECISIONS, Problem
from tasks.lib.training.launching import PLAIN, Launch, read_launcher

LENGTH = 1024  # TRL's default of `max_length`
BATCH = 16  # rows of a step, where `per_device_train_batch_size` is left to TRL
ALONE = read_launcher(PLAIN, "")
CPU_SPEED = 60e9  # float32 operations per second and thread that training reached on the machine of the demo


@dataclass(frozen=True)
class Training:
    """How a stage trains one model, as far as memory depends on it."""

    method: str
    adapter: Mapping[str, Any]
    launch: Launch
    tokens: int  # of one step on one device
    logit_tokens: int  # those of them that get logits
    checkpointing: bool = False
    autocast: bool = False

    @property
    def has_adapters(self) -> bool:
        return self.method in PEFT


@dataclass(frozen=True)
class Sections:
    """The sections of params.yaml of the stages that are planned."""

    base: base.Params
    sft: sft.Params
    sample: sample.Params
    reward: reward.Params
    dpo: dpo.Params
    ppo: ppo.Params
    evaluate: evaluate.Params
    distill: distill.Params
    quantize: quantize.Params
    release: release.Params
    precision: str = PRECISIONS[0]


def read_sections(document: Mapping[str, Any]) -> Sections:
    """The validated sections of a params.yaml; Problem for a mistake in one of them."""
    modules = (base, sft, sample, reward, dpo, ppo, evaluate, distill, quantize, release)
    precision = document.get("precision", PRECISIONS[0])
    return Sections(**validated_sections(document, modules), precision=precision)


def needs(sections: Sections, shape: Shape, device: Device) -> dict[str, Need]:
    """What each stage needs of one device."""
    shape = replace(shape, kept=memory.kept_bytes(sections.precision, shape.parameters))
    length = sections.sft.trainer.get("max_length") or LENGTH  # of a prompt with its answer, at most
    return {
        "base": _of_base(sections.base, shape, device),
        "sft": _of_sft(sections.sft, shape, device),
        "sample": _of_sample(sections.sample, shape, length, device),
        "reward": _of_reward(sections.reward, sections.sample, shape, length, device),
        "dpo": _of_dpo(sections.dpo, shape, device),
        "ppo": _of_ppo(sections.ppo, shape, length, device),
        "evaluate": of_evaluate(sections.evaluate, shape, length, device),
        "distill": of_distill(sections.distill, shape, length, device),
        "quantize": of_quantize(sections.quantize, sections.distill, shape, device),
        "release": of_release(sections.quantize, sections.release, sections.distill, shape, device),
    }


def launches(sections: Sections) -> dict[str, Launch]:
    """The stages that may run in several processes, and what these share out."""
    return {
        "sft": read_launcher(sections.sft.launcher, "sft"),
        "dpo": read_launcher(sections.dpo.launcher, "dpo"),
        "ppo": read_launcher(sections.ppo.launcher, "ppo"),
    }


def _of_training(training: Training, shape: Shape, device: Device) -> Need:
    """What the model that is trained takes; operations are the stage's to count."""
    adapter, launch = dict(training.adapter), training.launch
    weights, state = memory.trained_bytes(shape, training.method, adapter)
    weights, state = memory.spread_bytes(shape, weights, state, launch.processes, launch.zero)
    how = Arithmetic(shape.kept if training.has_adapters else 4.0, training.autocast)
    matrices = shape
    if training.method == "qlora":  # embeddings and norms are in float32, and no matrix is cast
        how, matrices = Arithmetic(4.0, training.autocast), replace(shape, linear=0)
    activations = memory.activation_bytes(
        matrices, training.tokens, how, checkpointing=training.checkpointing, adapters=training.has_adapters
    )
    activations += memory.backward_bytes(shape, training.tokens, how.size)
    activations += memory.logits_bytes(shape, training.logit_tokens)
    trained = memory.trained_parameters(shape, training.method, adapter)
    disk = memory.saved_bytes(shape, training.method, trained)
    return Need(weights, state, activations, 0.0, None, disk, scratch=memory.checkpoint_bytes(trained))


def _is_autocast(trainer: Mapping[str, Any], shape: Shape, device: Device, *, has_adapter: bool) -> bool:
    """Whether a trainer of TRL computes in bf16: on a GPU, and on float32 masters of weights that are kept in bf16."""
    return bool(trainer.get("bf16", device.is_gpu or (shape.kept == 2 and not has_adapter)))


def _of_base(section: base.Params, shape: Shape, device: Device) -> Need:
    settings = section.pretraining
    if not settings.steps:  # loaded on the CPU, checked and written
        disk = shape.kept * shape.parameters
        of_hub = not Path(section.model).exists() and "/" in section.model  # its files stay in the Hub's cache
        return Need(0.0, 0.0, 0.0, 0.0, 0.0, disk * (1 + of_hub), host=disk)
    tokens = settings.batch_size * settings.sequence_length
    need = _of_training(Training("full", {}, ALONE, tokens, logit_tokens=tokens), shape, device)
    return replace(need, operations=6.0 * shape.parameters * tokens * settings.steps)


def _of_sft(section: sft.Params, shape: Shape, device: Device) -> Need:
    launch = read_launcher(section.launcher, "sft")
    trainer = section.trainer
    length = trainer.get("max_length") or LENGTH
    tokens = trainer.get("per_device_train_batch_size", BATCH) * length
    if isinstance(section.batch_tokens, int):
        tokens = section.batch_tokens
    checkpointing = trainer.get("gradient_checkpointing", device.is_gpu)
    bf16 = _is_autocast(trainer, shape, device, has_adapter=section.method in PEFT)
    training = Training(section.method, section.adapter, launch, tokens, tokens, checkpointing, bf16)
    per_token = 4.0 * shape.parameters
    if section.method == "full":  # the weights have gradients too
        per_token = 6.0 * shape.parameters
    steps = trainer.get("max_steps") or _steps(trainer, tokens / length * launch.processes)
    operations = _operations(trainer, per_token * tokens, steps)
    return replace(_of_training(training, shape, device), operations=operations)


def _of_sample(section: sample.Params, shape: Shape, longest: int, device: Device) -> Need:
    rows = section.prompts * section.answers * section.oversample
    length = longest + section.max_new_tokens
    cache = memory.sampling_bytes(shape, device, min(section.batch_size, rows), length)
    operations = 2.0 * shape.parameters * rows * length
    return Need(shape.kept * shape.parameters, 0.0, 0.0, cache, operations, disk=0.0)


def _of_reward(section: reward.Params, sampled: sample.Params, shape: Shape, longest: int, device: Device) -> Need:
    of_prompt = sampled.answers * longest  # all answers to a prompt are in one pass
    if section.training.share_prompt:
        of_prompt = longest + (sampled.answers - 1) * sampled.max_new_tokens
    method, adapter = "full", dict[str, Any]()
    if section.method == "lora":
        method, adapter = "lora", section.lora
    size = shape.kept if method == "lora" else 4.0
    limit = section.training.tokens_per_pass or memory.tokens_of_pass(shape, device, size, logits=False)
    tokens = max(of_prompt, min(limit, section.training.prompts_per_step * of_prompt))
    if section.method == "head":  # the body is computed once and keeps nothing for a backward pass
        method, adapter, tokens = "lora", {"r": 0}, 0
    bf16 = section.method == "full" and shape.kept == 2
    need = _of_training(Training(method, adapter, ALONE, tokens, logit_tokens=0, autocast=bf16), shape, device)
    per_token = {"full": 6.0, "lora": 4.0, "head": 2.0}[section.method] * shape.parameters
    scored_tokens = sampled.prompts * sampled.answers * longest
    return replace(need, operations=per_token * scored_tokens * section.training.epochs)


def _of_dpo(section: dpo.Params, shape: Shape, device: Device) -> Need:
    launch = read_launcher(section.launcher, "dpo")
    trainer = section.trainer
    rows = 2 * trainer.get("per_device_train_batch_size", BATCH)  # chosen and rejected
    tokens = rows * (trainer.get("max_length") or LENGTH)
    method, adapter, per_token = "full", dict[str, Any](), 6.0 * shape.parameters
    if section.lora is not None:
        method, adapter, per_token = "lora", section.lora, 4.0 * shape.parameters
    checkpointing = trainer.get("gradient_checkpointing", device.is_gpu)
    bf16 = _is_autocast(trainer, shape, device, has_adapter=section.lora is not None)
    need = _of_training(Training(method, adapter, launch, tokens, tokens, checkpointing, bf16), shape, device)
    # with adapters the reference is the policy without them
    if section.lora is None and not trainer.get("precompute_ref_log_probs"):
        reference, _ = memory.spread_bytes(shape, 4.0 * shape.parameters, 0.0, launch.processes, launch.zero)
        need = replace(need, weights=need.weights + reference)
    per_token += 2.0 * shape.parameters  # the reference's forward pass
    return replace(need, operations=_operations(trainer, per_token * tokens, trainer.get("max_steps")))


def _of_ppo(section: ppo.Params, shape: Shape, longest: int, device: Device) -> Need:
    """Policy, reward model, reference (or the policy with its adapters off), critic (or a head on the policy)."""
    launch = read_launcher(section.launcher, "ppo")
    count, rows = shape.parameters, section.batch_size
    length = longest + section.max_new_tokens
    method, adapter, per_update = "full", dict[str, Any](), 6.0
    others = shape.kept * count + 4.0 * count  # the reward model, and the reference as the policy is trained
    if section.lora is not None:
        method, adapter, per_update = "lora", section.lora, 4.0
        others = shape.kept * count
    size = shape.kept if method == "lora" else 4.0
    tokens = max(length, min(rows * length, memory.tokens_of_pass(shape, device, size, logits=True)))
    answered = tokens * section.max_new_tokens // length  # those of them that are of answers
    training = Training(method, adapter, launch, tokens, logit_tokens=answered)
    need = _of_training(training, shape, device)
    own_critic = section.critic == "reward"
    if own_critic:  # all its weights are trained
        others += 4.0 * count
        kept = memory.activation_bytes(shape, tokens, Arithmetic(4.0), checkpointing=False)
        need = replace(need, training=need.training + 12.0 * count, activations=need.activations + kept)
    per_token = 2.0 * count * (2 + 2 + own_critic)  # rollout, reward, log-probs twice, values
    per_token += section.epochs * per_update * count * (1 + own_critic)
    return replace(
        need,
        weights=need.weights + others,
        cache=memory.sampling_bytes(shape, device, rows, length),
        operations=per_token * section.iterations * section.episodes * length / launch.processes,
    )


def _operations(trainer: Mapping[str, Any], per_step: float, steps: float | None) -> float | None:
    """Of `steps` optimiser steps, each of which may accumulate several; None when their number is not known."""
    if not steps:
        return None
    return per_step * steps * trainer.get("gradient_accumulation_steps", 1)


def _steps(trainer: Mapping[str, Any], batch: float) -> float | None:
    """Optimiser steps of the given epochs, `batch` rows side by side in all processes, once the rows are there."""
    rows = Path("data/curated/train.parquet")
    if not rows.is_file():
        return None
    import pyarrow.parquet

    count = pyarrow.parquet.ParquetFile(rows).metadata.num_rows
    step = batch * trainer.get("gradient_accumulation_steps", 1)
    return float(trainer.get("num_train_epochs", 3.0)) * count / step


def shape_of(section: base.Params, config: Path | None) -> Shape:
    """The shape of the model that `base` will make; of a Hub model by the config.json that is named."""
    if config is not None or Path(section.model).is_dir():
        place = config or Path(section.model)
        try:
            return memory.shape_of_config(memory.read_config(place))
        except (OSError, ValueError, AttributeError) as error:
            reason = str(error).splitlines()[0][:120]
            raise Problem(f"{place}: not a config.json of a causal language model: {reason}") from None
    if section.model != "embedded":
        raise Problem(
            f"params.yaml: base.model: {section.model} is not on this machine; name its config.json: "
            "anneal plan --config FILE"
        )
    from transformers import LlamaConfig

    tiny = section.tiny
    return memory.shape_of_config(
        LlamaConfig(
            vocab_size=tiny.vocab_size,
            hidden_size=tiny.hidden,
            num_hidden_layers=tiny.layers,
            num_attention_heads=tiny.heads,
            intermediate_size=tiny.feed_forward,
            tie_word_embeddings=True,
        )
    )


def config_of(presets: Sequence[Path]) -> Path | None:
    """The config.json in the folder that has the name of a preset; of the last preset that has one."""
    for preset in reversed(presets):
        config = preset.with_suffix("") / "config.json"
        if config.is_file():
            return config
    return None


def device_of(name: str, threads: int) -> Device:
    """A device by name (`cpu`: this machine), with the speed that training reaches and the memory that is free."""
    if name == "cpu":
        import psutil

        return Device(psutil.virtual_memory().total, CPU_SPEED * threads, is_gpu=False)
    if name not in memory.DEVICES:
        raise Problem(f"--device {name}: unknown device; choose one of cpu, {', '.join(memory.DEVICES)}")
    sheet = memory.DEVICES[name]
    return Device(sheet.memory * memory.FREE, sheet.speed * memory.REACHED)
