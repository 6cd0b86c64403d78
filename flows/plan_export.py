"""What the stages behind the training ones need of a device and of the disk: evaluate, distill, quantize, release."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from pathlib import Path

from flows import memory
from flows.memory import Arithmetic, Device, Shape
from flows.need import Need
from tasks.lib.settings import distill, evaluate, quantize, release

ANSWERED = 128  # rows that distill answers side by side
STUDENT = Path("models/student")
BITS = {"int8": 8.0, "nf4": 8 * memory.NF4}  # of a weight that bitsandbytes quantises
GGUF_BITS = {"gguf-f16": 16.0, "gguf-q8_0": 8.5}  # of every weight


def of_evaluate(section: evaluate.Params, shape: Shape, longest: int, device: Device) -> Need:
    """One model after the other; the KL of one needs the reference beside it."""
    models = 2 if section.kl_prompts else 1
    weights = models * shape.kept * shape.parameters
    cache = memory.sampling_bytes(shape, device, section.batch_size, longest + section.max_new_tokens)
    return Need(weights, 0.0, 0.0, cache, operations=None, disk=0.0)


def of_distill(section: distill.Params, shape: Shape, longest: int, device: Device) -> Need:
    """The teacher as it is kept, and the student, all of whose weights are trained in float32."""
    student, how = student_of(section, shape), section.training
    weights, state = memory.trained_bytes(student, "full", {})
    length = longest + section.max_new_tokens
    tokens = min(how.batch_size * length, memory.tokens_of_pass(student, device, 4.0, logits=True))
    tokens = max(length, tokens)
    arithmetic = Arithmetic(4.0, autocast=shape.kept == 2)
    activations = memory.activation_bytes(student, tokens, arithmetic, checkpointing=False)
    activations += memory.backward_bytes(student, tokens, arithmetic.size)
    activations += 2 * memory.logits_bytes(student, tokens * section.max_new_tokens // length)
    steps = ceil(section.max_prompts / how.batch_size) * how.epochs
    # answers are sampled side by side before and after training, when Adam's moments are not there
    cache = memory.sampling_bytes(shape, device, min(ANSWERED, section.max_prompts), length) - 2 / 3 * state
    scratch = 0.0
    if how.checkpoint_every < steps:  # the next one is written before the last one goes
        scratch = (2 if 2 * how.checkpoint_every < steps else 1) * 12.0 * student.parameters
    return Need(
        weights=weights + shape.kept * shape.parameters,
        training=state,
        activations=activations,
        cache=max(cache, 0.0),
        operations=6.0 * student.parameters * how.epochs * section.max_prompts * length,
        disk=shape.kept * student.parameters,
        scratch=scratch,
    )


def student_of(section: distill.Params, shape: Shape) -> Shape:
    """The shape of the student: some of the teacher's layers, and all that is not a layer."""
    layers = ceil(shape.layers / section.layers) if isinstance(section.layers, int) else len(section.layers)
    share = layers / shape.layers
    in_layers = shape.linear + 2 * shape.hidden * shape.layers
    parameters = shape.parameters - in_layers + round(share * in_layers)
    return replace(shape, layers=layers, linear=round(share * shape.linear), parameters=parameters)


def of_quantize(section: quantize.Params, distilled: distill.Params, shape: Shape, device: Device) -> Need:
    """The model on the device, and in float32 on the CPU beside what each format is made from."""
    model = _released(section.model, distilled, shape)
    weights, host = model.kept * model.parameters, 2 * 4.0 * model.parameters
    disk = sum(_format_bytes(model, name) for name in section.formats)
    return _on_cpu(Need(weights, 0.0, 0.0, 0.0, operations=None, disk=disk, host=host), device)


def of_release(
    section: quantize.Params, released: release.Params, distilled: distill.Params, shape: Shape, device: Device
) -> Need:
    """Two models in float32 on the CPU, the reference and a format; the formats are copied."""
    model = _released(released.model, distilled, shape)
    disk = sum(_format_bytes(model, name) for name in section.formats)
    need = Need(0.0, 0.0, 0.0, 0.0, operations=None, disk=disk, host=2 * 4.0 * model.parameters)
    return _on_cpu(need, device)


def _released(model: Path, distilled: distill.Params, shape: Shape) -> Shape:
    return student_of(distilled, shape) if model == STUDENT else shape


def _format_bytes(shape: Shape, name: str) -> float:
    """Bytes of a model folder in a format of the export."""
    if name in BITS:
        return BITS[name] / 8 * shape.linear + shape.kept * (shape.parameters - shape.linear)
    if name in GGUF_BITS:
        return GGUF_BITS[name] / 8 * shape.parameters
    return (2.0 if name == "safetensors-bf16" else shape.kept) * shape.parameters


def _on_cpu(need: Need, device: Device) -> Need:
    """The same where the device is the CPU itself."""
    return need if device.is_gpu else replace(need, weights=need.weights + need.host, host=0.0)
