"""What benchmarks/gpu.py runs in a process of its own: a stage with a meter, models, log-probabilities.

Run     python -m benchmarks.gpu_parts STAGE        in a folder with params.yaml; writes part.json
"""

from __future__ import annotations

import json
import random
import runpy
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.memory import ROOT
from tasks.lib.finetuning.pretraining import new_llama, train_tokenizer
from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.loading import device, load_policy, save_model
from tasks.lib.models.logprobs import answer_logprobs

FILE = Path("part.json")
ROWS, PROMPT, ANSWER = 4, 48, 16  # of the log-probabilities that are compared, the latter two in tokens
EXACT, TWICE = 1e-3, 2.0  # nats that float32 may differ; how much larger than on the CPU the error of bf16 may be


class Meter:
    """Tokens that models read, the operations that they cost forwards and backwards, and when optimisers stepped."""

    def __init__(self) -> None:
        self.passes: list[tuple[float, int, int, float]] = []  # time, tokens, those with a gradient, operations
        self.steps: list[float] = []
        self._sizes: dict[int, tuple[int, int]] = {}  # of each model: all its parameters, and those that are trained

    def add(self, model: Any, ids: torch.Tensor) -> None:
        """A pass of the body of a model over ids (B, T)."""
        if id(model) not in self._sizes:
            self._sizes[id(model)] = sizes_of(model)
        everything, trained = self._sizes[id(model)]
        tokens, per_token = ids.shape[0] * ids.shape[1], 2.0 * everything
        if torch.is_grad_enabled():
            per_token = 4.0 * everything + 2.0 * trained
        self.passes.append((time.monotonic(), tokens, tokens * torch.is_grad_enabled(), per_token * tokens))

    def figures(self) -> dict[str, float]:
        """Seconds of the window from the first optimiser step to the last (without: of all passes), its operations, and
        its tokens per second: those that are trained on where there are any."""
        start, end = (self.steps[0], self.steps[-1]) if len(self.steps) > 1 else (0.0, time.monotonic())
        inside = [each for each in self.passes if start <= each[0] <= end]
        if not inside:
            return {}
        window = end - (start or inside[0][0])
        trained = sum(each[2] for each in inside)
        tokens = trained or sum(each[1] for each in inside)
        operations = sum(each[3] for each in inside)
        return {"window": window, "operations": operations, "tokens_per_second": tokens / window}


def sizes_of(model: Any) -> tuple[int, int]:
    """How many parameters a model has, two for each byte of a matrix in 4 bits, and how many are trained."""
    everything = trained = 0
    for parameter in model.parameters():
        count = parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)
        everything += count
        trained += count * parameter.requires_grad
    return everything, trained


@contextmanager
def metered() -> Iterator[Meter]:
    """A meter of everything that runs meanwhile."""
    meter = Meter()

    def call(model: Any, *args: Any, **settings: Any) -> Any:
        if model.base_model is model:
            read = settings.get("input_ids", args[0] if args else None)
            meter.add(model, settings["inputs_embeds"] if read is None else read)
        return torch.nn.Module.__call__(model, *args, **settings)

    def stepped(*_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        meter.steps.append(time.monotonic())

    PreTrainedModel.__call__ = call  # type: ignore[method-assign]
    hook = register_optimizer_step_post_hook(stepped)
    try:
        yield meter
    finally:
        del PreTrainedModel.__call__
        hook.remove()


def measured(stage: str) -> None:
    """Run a stage as `python -m tasks.STAGE` does, and write what it took to part.json."""
    forget_peak()
    with metered() as meter:
        runpy.run_module(f"tasks.{stage}", run_name="__main__", alter_sys=True)
        figures = meter.figures()
    FILE.write_text(json.dumps(figures | {"peak_bytes": peak()}))


def forget_peak() -> None:
    """Let the largest resident set of this process be that of now, where Linux lets it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak() -> float:
    """Bytes of the device that torch had allocated at most; on a CPU the largest resident set."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status").read_text()
    return 1024.0 * int(status.split("VmHWM:")[1].split()[0])


def logprob_errors(folder: Path) -> dict[str, Any]:
    """How far log-probabilities on the device are from those of float32 on the CPU, in nats; `failed` if too far."""
    draw = random.Random(0)
    size = len(load_tokenizer(folder))
    prompts = [[draw.randrange(size) for _ in range(PROMPT)] for _ in range(ROWS)]
    answers = [[draw.randrange(size) for _ in range(ANSWER)] for _ in range(ROWS)]

    def logprobs(place: Any, dtype: torch.dtype) -> torch.Tensor:
        model = load_policy(folder, on="cpu").to(dtype).to(place)
        return torch.cat(answer_logprobs(model, prompts, answers, batch_size=ROWS)).float()

    exact = logprobs("cpu", torch.float32)
    of_cpu = (logprobs("cpu", torch.bfloat16) - exact).abs().mean().item()
    of_device = (logprobs(device(), torch.bfloat16) - exact).abs().mean().item()
    of_float32 = (logprobs(device(), torch.float32) - exact).abs().max().item()
    words = f"float32 {of_float32:.1e} at most; bf16 {of_device:.1e} on average, {of_cpu:.1e} on the CPU"
    figures = {"float32": of_float32, "bf16": of_device, "bf16_cpu": of_cpu}
    if of_float32 > EXACT or of_device > TWICE * of_cpu:
        return figures | {"failed": f"differ: {words}"}
    return figures | {"note": words}


def tiny_llama(folder: Path) -> None:
    """A Llama that takes milliseconds, with a tokenizer that knows the words of the made-up rows."""
    lines = (ROOT / "data/raw/text.txt").read_text(encoding="utf-8").split("\n")[:1000]
    tokenizer = train_tokenizer(lines, 1000)
    torch.manual_seed(0)
    model = new_llama(tokenizer, hidden=32, layers=2, heads=2, feed_forward=64, context=1024, rope_theta=1e4)
    save_model(model, tokenizer, folder)


def random_llama(tokenizer: Any, folder: Path) -> None:
    """A Llama of a billion random parameters in bf16, of the shape of Llama 3.2 1B, for a tokenizer."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=2048, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, intermediate_size=8192, max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    save_model(LlamaForCausalLM(config), tokenizer, folder, dtype=torch.bfloat16)


if __name__ == "__main__":
    measured(sys.argv[1])
