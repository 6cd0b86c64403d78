"""What a stage will need, before it runs: memory of a device, operations, bytes on disk. No weights are read.

Mixed-precision Adam: 2 bytes of weight, 2 of gradient and 12 of optimiser state (fp32 weight, two moments) a
parameter; ZeRO spreads them over N devices (arXiv 1910.02054, section 5). A forward pass costs 2 operations per
parameter and token, a backward pass 4 (arXiv 2001.08361, section 2.1); with frozen weights it costs 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.lib.models.pass_size import CACHE, GPU_SHARE, TRAINING, layer_numbers, tokens_trained_within
from tasks.lib.settings.methods import PEFT
from tasks.lib.settings.precision import chosen_precision

NF4 = 4.127 / 8  # bytes a weight, with double quantisation (arXiv 2305.14314)


@dataclass(frozen=True)
class Device:
    """Bytes of memory and operations per second of one device."""

    memory: float
    speed: float
    is_gpu: bool = True

    def for_passes(self, on_cpu: float) -> float:
        """Bytes that one pass may take (tasks/lib/models/pass_size.py)."""
        return GPU_SHARE * self.memory / FREE if self.is_gpu else on_cpu


FREE = 0.92  # share of a device's memory that is there to be used: the rest is the driver's and fragments
DEVICES = {  # as the data sheet says: 16-bit operations, dense
    "rtx4090": Device(24e9, 165e12),
    "a100-40": Device(40e9, 312e12),
    "a100-80": Device(80e9, 312e12),
    "h100": Device(80e9, 989e12),
    "h200": Device(141e9, 989e12),
}
REACHED = 0.35  # share of a data sheet's speed that training reaches; a guess, to be replaced by your own


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama-like model that memory depends on."""

    parameters: int
    linear: int  # parameters in the layers' matrices: what adapters attach to and nf4 shrinks
    layers: int
    hidden: int
    key_value: int  # width of keys, and of values
    feed_forward: int
    vocabulary: int
    in_and_out: int  # sum over the layers' matrices of inputs plus outputs
    kept: float = 4.0  # bytes of a weight as it is kept


def shape_of_config(config: Any) -> Shape:
    """The shape of a transformers config, counted on the meta device: nothing is allocated."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    output = model.get_output_embeddings()
    matrices = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear | Conv1D) and m is not output]
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        linear=sum(weight.numel() for weight in matrices),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        key_value=width * (getattr(config, "num_key_value_heads", None) or heads),
        feed_forward=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        vocabulary=config.vocab_size,
        in_and_out=sum(sum(weight.shape) for weight in matrices),
    )


def kept_bytes(precision: str, parameters: int) -> float:
    """Bytes of a weight as it is kept, by `precision` of params.yaml (tasks/lib/settings/precision.py)."""
    return 2.0 if chosen_precision(precision, parameters) == "bfloat16" else 4.0


def trained_bytes(shape: Shape, method: str, adapter: dict[str, Any]) -> tuple[float, float]:
    """(bytes of the weights, bytes of gradients and optimiser) of a model that is trained with a method here.

    What is trained is in float32, its gradients are too, and AdamW has two moments: 4 + 4 + 8. Weights under an
    adapter stay as they are kept. Of `qlora` the layers' matrices are in nf4 and the rest in float32
    (peft's prepare_model_for_kbit_training).
    """
    if method == "full":
        return 4.0 * shape.parameters, 12.0 * shape.parameters
    few = trained_parameters(shape, method, adapter)
    weights = (shape.kept if method in PEFT else 4.0) * shape.parameters
    if method == "qlora":
        weights = NF4 * shape.linear + 4.0 * (shape.parameters - shape.linear)
    # the rows of a soft prompt are part of the vocabulary's matrix, and its gradient is whole
    moved = shape.vocabulary * shape.hidden if method == "prompt" else few
    return weights + 4.0 * few, 12.0 * moved


def spread_bytes(
    shape: Shape, weights: float, state: float, devices: int, stage: int, bytes_each: float = 4.0
) -> tuple[float, float]:
    """(weights, gradients and optimiser) per device when `devices` share them out as ZeRO `stage` says.

    Of `state` a third are gradients, two thirds the optimiser's. Stage 3 gathers a block while the next one is on
    its way, and the embeddings for the whole pass.
    """
    if stage == 0 or devices == 1:
        return weights, state
    kept = {1: state / 3, 2: 0.0, 3: 0.0}[stage]  # stage 1 spreads the optimiser alone
    state = kept + (state - kept) / devices
    if stage < 3:
        return weights, state
    gathered = 2 * shape.linear / shape.layers + (shape.parameters - shape.linear)
    return weights / devices + bytes_each * gathered, state


def trained_parameters(shape: Shape, method: str, adapter: dict[str, Any]) -> int:
    """How many numbers a method trains (tasks/lib/finetuning/adapters.py)."""
    layers, hidden, wide = shape.layers, shape.hidden, shape.feed_forward
    counts = {
        "full": shape.parameters,
        "lora": adapter.get("r", 8) * shape.in_and_out,
        "qlora": adapter.get("r", 8) * shape.in_and_out,
        "adalora": adapter.get("init_r", 12) * (shape.in_and_out + 7 * layers),
        "ia3": layers * (2 * shape.key_value + wide),
        "bitfit": layers * (3 * hidden + 2 * shape.key_value + 2 * wide),
        "bottleneck": layers * 3 * hidden * adapter.get("size", 32),
        "prompt": adapter.get("tokens", 16) * hidden,
        "prefix": adapter.get("num_virtual_tokens", 16) * layers * 2 * shape.key_value,
        "head": shape.vocabulary * hidden,
    }
    return counts[method]


@dataclass(frozen=True)
class Arithmetic:
    """In which numbers a model is passed: bytes of its weights, and whether autocast computes in bf16."""

    weights: float
    autocast: bool = False

    @property
    def size(self) -> int:
        """Bytes of a number that a layer computes."""
        return 2 if self.autocast or self.weights < 4 else 4


def activation_bytes(
    shape: Shape, tokens: int, how: Arithmetic, *, checkpointing: bool, adapters: bool = False
) -> float:
    """Bytes kept for the backward pass of `tokens` tokens, attention not materialised.

    Norms keep float32. Adapters in float32 keep a copy in float32 of what each matrix reads, or a cast one under
    autocast; matrices that are trained themselves keep what they read, and autocast keeps casts of float32 weights.
    Checkpointing keeps a layer's input and one layer.
    """
    hidden, key_value, wide, size = shape.hidden, shape.key_value, shape.feed_forward, how.size
    one = 8.0 * hidden + size * (6 * hidden + 2 * key_value + 4 * wide)
    if adapters and size == 2:
        copies = (2 if how.autocast else 4) * (6 * hidden + wide)
        one = 8.0 * hidden + 2 * (2 * hidden + 2 * key_value + 3 * wide) + copies
    elif how.autocast and how.weights == 4:  # norms write float32, and each matrix casts what it reads
        one = 16.0 * hidden + 2 * (7 * hidden + 2 * key_value + 4 * wide)
    casts = 2.0 * shape.linear if how.autocast and how.weights == 4 else 0.0
    if checkpointing:
        return tokens * (shape.layers * hidden * min(how.weights, 4.0) + one) + casts / shape.layers
    return tokens * shape.layers * one + casts


def backward_bytes(shape: Shape, tokens: int, size: int) -> float:
    """Bytes of gradients while the backward pass is in its first layer, when nothing that was kept is free yet.

    Of the feed-forward network's product, gate and up at once, the widest tensors there are.
    """
    return 3.0 * tokens * shape.feed_forward * size


def logits_bytes(shape: Shape, tokens: int) -> float:
    """Logits, their log-softmax and the gradient, in float32."""
    return 3.0 * 4 * tokens * shape.vocabulary


def cache_bytes(shape: Shape, tokens: int, size: int) -> float:
    """The KV cache of `tokens` tokens (rows x length)."""
    return 2.0 * tokens * shape.layers * shape.key_value * size


def saved_bytes(shape: Shape, method: str, trained: int) -> float:
    """What a stage saves: the adapter in float32, or all weights as they are kept."""
    return 4.0 * trained if method in PEFT else shape.kept * shape.parameters


def tokens_of_pass(shape: Shape, device: Device, size: float, *, logits: bool) -> int:
    """Tokens to which a stage cuts a pass that keeps activations, of a model whose weights have `size` bytes."""
    layer = layer_numbers(shape.hidden, shape.key_value, shape.feed_forward) * int(size)
    return tokens_trained_within(device.for_passes(TRAINING), shape.layers * layer, shape.vocabulary * logits)


def sampling_bytes(shape: Shape, device: Device, rows: int, length: int) -> float:
    """The KV cache of answers that are sampled side by side, as many as have room, and their logits."""
    cache = min(cache_bytes(shape, rows * length, int(shape.kept)), device.for_passes(CACHE))
    return cache + 4.0 * rows * shape.vocabulary


def checkpoint_bytes(trained: int) -> float:
    """Two checkpoints of what is trained, in float32 with Adam's two moments."""
    return 2 * 12.0 * trained


def read_config(path: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
