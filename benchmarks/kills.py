"""Kill -9 at random moments of training stages; the weights must end as those of a run that was never killed.

    python -m benchmarks.kills WORKSPACE [--kills 10] [--rows 200] [--stages sft reward dpo ppo] [--preset FILE]
                               [--set reward.method=lora ...] [--seed 0]

WORKSPACE has been through the pipeline once (`make demo`, or `anneal run --preset presets/smoke.yaml`); nothing is
written in it: its models and some rows of its data are copied, and the preset (presets/smoke.yaml) is laid over
the params.yaml of the current folder, with what makes its ppo learn (`LEARNS`).
A killed run is started again at once, and killed again; one that ends before its kill is compared and starts from
nothing. Every file of models/<stage> counts.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import trl  # noqa: F401  here once: children are forked, so that kills fall into the work, not into imports
from peft import LoraConfig  # noqa: F401
from ruamel.yaml import YAML
from trl import DPOTrainer, SFTTrainer  # noqa: F401

from flows.presets import laid
from tasks.lib.stage import PARAMS_FILE, read_yaml
from tasks.lib.stage import main as run_stage

READ = ["data/raw", "models/base", "models/sft", "models/reward"]
ROWS = ["curated/train", "curated/validation", "curated/policy", "candidates/candidates"]
ROWS += ["preferences/train", "preferences/heldout"]
RATINGS = ["preferences/ratings_train", "preferences/ratings_heldout"]  # with preferences.attributes only

LEARNS = ["ppo.iterations=6", "ppo.evaluate_every=1", "ppo.judge=reward", "ppo.learning_rate=3e-3"]


def started(stage: str, log: Path) -> int:
    """The process id of a child that runs a stage in the current folder."""
    module = importlib.import_module(f"tasks.{stage}")
    if child := os.fork():
        return child
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    try:
        run_stage(str(module.__file__), module.Params, module.run)
        sys.stdout.flush()
        os._exit(0)
    except SystemExit as end:
        print(end, flush=True)
    finally:
        os._exit(1)


def ended(child: int, seconds: float) -> bool:
    """Wait so long for a child, then kill it. True when it ended well before that, RuntimeError when it failed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            if status:
                raise RuntimeError("the stage failed, see its log")
            return True
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def digest(folder: Path) -> str:
    """One hash of all files of a folder, by name and content."""
    total = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{file.relative_to(folder)} {hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
    return total.hexdigest()


def weights(folder: Path) -> str:
    """One hash of the weights alone."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def kill(stage: str, kills: int, seed: int) -> None:
    """Run once undisturbed, then until that many kills; RuntimeError when bytes differ."""
    chance, log, out = random.Random(f"{seed}/{stage}"), Path(f"{stage}.log"), Path("models") / stage
    checkpoints = Path(".anneal/checkpoints") / stage
    shutil.rmtree(out, ignore_errors=True)
    begun = time.monotonic()
    ended(started(stage, log), float("inf"))
    whole = time.monotonic() - begun
    expected = digest(out)
    if stage == "ppo" and weights(out) == weights(Path("models/sft")):
        raise RuntimeError("ppo learned nothing and handed on models/sft, which shows little; see LEARNS")
    print(f"{stage}: {whole:.1f} s uninterrupted, weights {expected[:12]}", flush=True)
    done = compared = 0
    while done < kills or not out.exists():
        seconds = chance.uniform(0, whole) if done < kills else float("inf")
        shutil.rmtree(out, ignore_errors=True)  # as DVC does before a run
        begun = time.monotonic()
        if ended(started(stage, log), seconds):
            compared += 1
            whole = min(whole, time.monotonic() - begun)  # the machine may have become less busy
            if digest(out) != expected:
                raise RuntimeError(f"{stage}: after {done} kills the weights are {digest(out)[:12]}")
            print(f"{stage}: ended after {done} kills, weights {expected[:12]}", flush=True)
        else:
            done += 1
            left = ", ".join(sorted(path.name for path in checkpoints.glob("check*"))) or "no checkpoint"
            print(f"{stage}: kill {done} after {seconds:.1f} s leaves {left}", flush=True)
    runs = "1 run" if compared == 1 else f"{compared} runs"
    print(f"{stage}: {done} kills, {runs} to the end, all byte-identical", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--preset", type=Path, default=Path("presets/smoke.yaml"))
    parser.add_argument("--stages", nargs="+", default=["sft", "reward", "dpo", "ppo"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    document = laid(read_yaml(PARAMS_FILE), [options.preset], [*LEARNS, *options.set])
    document["threads"] = 1
    with tempfile.TemporaryDirectory() as folder:
        for name in READ:
            shutil.copytree(options.workspace / name, Path(folder) / name, symlinks=False)
        for name in ROWS + RATINGS:
            file = Path("data") / f"{name}.parquet"
            if name in RATINGS and not (options.workspace / file).exists():
                continue
            (Path(folder) / file).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pq.read_table(options.workspace / file).slice(0, options.rows), Path(folder) / file)
        os.chdir(folder)
        with PARAMS_FILE.open("w") as written:
            YAML().dump(document, written)
        for stage in options.stages:
            kill(stage, options.kills, options.seed)


if __name__ == "__main__":
    main()
