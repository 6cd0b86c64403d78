"""The Trainer of TRL as a stage uses it: rows tokenised before, resumed after a kill, nothing sent.

`configured` makes a TRL config from a stage's `trainer:` section, `ours` adapts a TRL trainer class, `train`
runs it. TRL is imported by the stages, inside `run`: it takes seconds.
"""

from __future__ import annotations

import math
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers import PrinterCallback, TrainerCallback

from tasks.lib.models.batches import shuffled_batches, token_batches
from tasks.lib.stage import Problem, Stage, known_keys
from tasks.lib.training.checkpoints import hf_checkpoint, mark_complete
from tasks.lib.training.distributed import combined, first_before_others, is_first, is_sharded, wait_for_all
from tasks.lib.training.launching import assert_kind

SPIKE = 5.0  # times the median of the steps before

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports every trainer that is made
# TRL asks transformers by an old name
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
OWNED = {
    "output_dir": "checkpoints lie under .anneal/checkpoints",
    "seed": "set the shared key seed",
    "data_seed": "set the shared key seed",
    "packing": "set sft.packing",
    "padding_free": "rows are batched by length instead",
    "remove_unused_columns": "the stage needs its columns",
    "resume_from_checkpoint": "a killed run is resumed by itself",
    "save_strategy": "use save_steps",
    "use_cpu": "the GPU is used when there is one",
    "model_init_kwargs": "the model is loaded by the stage",
    "push_to_hub": "a release is a folder",
    "truncation_mode": "rows that are too long are dropped, never cut",
}


def configured(Config: type, stage: Stage, given: Mapping[str, Any], **defaults: Any) -> Any:
    """A TRL config of `given` over `defaults` over what suits the machine. Problem for a bad key or value."""
    where = f"{stage.name.split('/')[0]}.trainer"
    for key in known_keys(where, given, Config):
        if key in OWNED:
            raise Problem(f"params.yaml: {where}.{key} cannot be set here: {OWNED[key]}")
    settings: dict[str, Any] = {
        "logging_steps": 1,  # so that a checkpoint at any step holds the whole log
        "save_steps": 100,
        "eval_steps": 50,
        "eval_strategy": "steps",
        "save_total_limit": 2,  # the newest may be half-written
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
        **defaults,
        **given,
        "output_dir": str(stage.checkpoints),
        "seed": stage.seed_of("trainer"),
        "remove_unused_columns": False,
    }
    if not torch.cuda.is_available():
        settings |= {
            "use_cpu": True,
            "bf16": False,
            "activation_checkpointing": False,
            "dataloader_pin_memory": False,
        }
    try:
        return Config(**settings)
    except (ValueError, TypeError) as error:
        raise Problem(f"params.yaml: {where}: {str(error).splitlines()[0][:200]}") from None


class LengthSampler(Sampler[int]):
    """Row numbers in shuffled batches of about equal length, another order each epoch, no hidden state.

    Rows of a group stay side by side; without groups every row is one.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        groups: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.groups = groups or [[row] for row in range(len(lengths))]
        self.lengths = [max(lengths[row] for row in group) for group in self.groups]
        self.rows = len(lengths)
        self.batch_size = max(1, batch_size * len(self.groups) // self.rows)  # in groups
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        for batch in shuffled_batches(self.lengths, self.batch_size, self.seed + self.epoch):
            for group in batch:
                yield from self.groups[group]


class BudgetSampler(Sampler[list[int]]):
    """Batches of row numbers of about equal length and about `tokens` tokens, another order each epoch."""

    def __init__(self, lengths: Sequence[int], tokens: int, seed: int, processes: int) -> None:
        self.lengths, self.tokens, self.seed, self.processes, self.epoch = lengths, tokens, seed, processes, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches())

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches()

    def batches(self) -> list[list[int]]:
        return token_batches(self.lengths, self.tokens, self.seed + self.epoch, multiple_of=self.processes)


def ours(Base: Any) -> Any:
    """The trainer class `Base` of TRL or transformers for tokenised rows that carry `row`, their number.

    A loss that is not finite is a Problem before the optimiser's step, and so is a first loss other than
    `first_loss`. `lengths` and `ids` are those of the training rows; a batch has `batch_tokens` tokens in place of
    so many rows where that is given. Rows of one of `groups` come side by side. `spike`: a loss of SPIKE times the
    median of the steps before is said with its rows, or stops the run.
    """
    if any(each.__module__.startswith("trl.") for each in Base.__mro__):
        _score_trained_positions_only()

    class Trainer(Base):
        data_collator: Any

        def __init__(
            self,
            *,
            lengths: Sequence[int],
            ids: Sequence[str],
            first_loss: float | None = None,
            batch_tokens: int | None = None,
            groups: Sequence[Sequence[int]] | None = None,
            spike: str = "off",
            **settings: Any,
        ) -> None:
            self.lengths, self.ids, self.first_loss = lengths, ids, first_loss
            self.batch_tokens, self.groups, self.spike = batch_tokens, groups, spike
            super().__init__(**settings)
            collate = self.data_collator
            self.data_collator = lambda rows: collate(rows) | {"row": torch.tensor([r["row"] for r in rows])}
            self.remove_callback(PrinterCallback)

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **settings: Any) -> Any:
            rows = inputs.pop("row").tolist()
            result = super().compute_loss(model, inputs, *args, **settings)
            loss = (result[0] if isinstance(result, tuple) else result).item()
            if self.model.training:
                self._guard(loss, rows)
            expected = self.first_loss if self.model.training and self.state.global_step == 0 else None
            if expected is not None and not math.isclose(loss, expected, abs_tol=1e-5):
                raise Problem(f"the first loss is {loss:.6g}, not {expected:.6g}: another reference?")
            return result

        def _guard(self, loss: float, rows: list[int]) -> None:
            """Problem for a loss that is not finite; a line, or a Problem, for one far above those before."""
            names = ", ".join(self.ids[row] for row in rows[:8])
            where = f"at step {self.state.global_step + 1}; rows {names}{' and more' if len(rows) > 8 else ''}"
            if not math.isfinite(loss):
                raise Problem(f"the loss is {loss} {where}; look at them or lower the learning rate")
            if self.spike == "off":
                return
            loss *= self.current_gradient_accumulation_steps  # of one of the batches of a step, so many are summed
            if (times := spiked(loss, self.state.log_history)) > SPIKE:
                found = f"the loss is {loss:.3g}, {times:.0f} times the median of the steps before, {where}"
                if self.spike == "stop":
                    raise Problem(f"{found}; look at them, or set sft.spike to say")
                print(f"sft: {found}", flush=True)

        def _prepare_dataset(self, dataset: Any, *args: Any, **settings: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *args: Any) -> LengthSampler:
            return LengthSampler(self.lengths, self.args.train_batch_size, self.args.seed, self.groups)

        def get_train_dataloader(self) -> Any:
            if self.batch_tokens is None:
                return super().get_train_dataloader()
            batches = BudgetSampler(self.lengths, self.batch_tokens, self.args.seed, self.accelerator.num_processes)
            loader = DataLoader(self.train_dataset, batch_sampler=batches, collate_fn=self.data_collator)
            even = self.accelerator.even_batches
            self.accelerator.even_batches = False  # their number is a multiple of that of the processes
            try:
                return self.accelerator.prepare(loader)
            finally:
                self.accelerator.even_batches = even

        def create_model_card(self, *args: Any, **settings: Any) -> None:
            """TRL writes a card into every checkpoint; ours is written at the release."""

        def _send_telemetry(self) -> None:
            """Nothing is sent."""

    return Trainer


def spiked(loss: float, log: Sequence[Mapping[str, Any]]) -> float:
    """How many times the median of the last 50 logged losses `loss` is; 0 while there are fewer than 20."""
    before = [entry["loss"] for entry in log[-200:] if "loss" in entry][-50:]
    return loss / max(median(before), 1e-9) if len(before) >= 20 else 0.0


def without_gain(log: Sequence[Mapping[str, Any]]) -> int:
    """How many evaluations there were since the one with the least loss. From the log: a resumed run knows it too."""
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def _score_trained_positions_only() -> None:
    """Logits of prompt tokens are not computed: TRL saves them under Triton alone, the loss is the same without.

    It scores every position elsewhere so that shapes do not vary, which a CPU does not mind.
    """
    from trl.trainer import utils

    utils._use_triton = lambda device: device.type in ("cpu", "cuda")


class _Watch(TrainerCallback):
    """Prints progress, marks checkpoints as complete, and ends after a checkpoint on SIGTERM."""

    def __init__(
        self,
        stage: Stage,
        fingerprint: dict[str, Any],
        shown: Mapping[str, str],
        border: int,
        patience: int | None,
    ) -> None:
        self.stage, self.fingerprint, self.shown = stage, fingerprint, shown
        self.border, self.patience = border, patience
        self.latest: dict[str, float] = {}
        self.terminated = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        self.latest |= {self.shown[key]: value for key, value in (logs or {}).items() if key in self.shown}
        if self.latest:
            self.stage.progress(state.global_step, state.max_steps, **self.latest)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.border:
            return
        if combined({"terminated": self.terminated})["terminated"]:  # whichever process was asked
            control.should_save = control.should_training_stop = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if _stopped(state.log_history, self.patience):
            print(f"{self.stage.name}: {self.patience} evaluations without gain: it ends at {state.global_step}")
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        wait_for_all()
        if is_first():
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.fingerprint)


def train(
    trainer: Any,
    stage: Stage,
    fingerprint: dict[str, Any],
    shown: Mapping[str, str],
    *,
    border: int = 1,
    patience: int | None = None,
) -> list[dict[str, Any]]:
    """Train to the end, from the last complete checkpoint if there is one. Returns the log, a dict per entry.

    `shown` maps names of the log to names on the progress line. So many evaluations as `patience` without a lower loss
    end it. SIGTERM saves after a step that is a multiple of `border`, then exits with status 143.
    """
    watch = _Watch(stage, fingerprint, shown, border, patience)
    trainer.add_callback(watch)
    assert_kind(trainer.accelerator.distributed_type)
    with first_before_others():  # the first may discard it
        resume = hf_checkpoint(stage.checkpoints, fingerprint, lambda log: _stopped(log, patience))
    if resume is not None:
        print(f"{stage.name}: going on from {resume}", flush=True)
        trainer.args.eval_on_start = False  # its figures are in the checkpoint's log
    earlier = _on_sigterm(lambda: setattr(watch, "terminated", True))
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    finally:
        signal.signal(signal.SIGTERM, earlier)
    if watch.terminated:
        print(f"{stage.name}: stopped after step {trainer.state.global_step}; run it again to go on", flush=True)
        raise SystemExit(128 + signal.SIGTERM)
    log: list[dict[str, Any]] = trainer.state.log_history
    if trainer.eval_dataset is not None and not any(
        "eval_loss" in entry and entry["step"] == trainer.state.global_step for entry in log
    ):
        trainer.evaluate()
    return log


def _stopped(log: Sequence[Mapping[str, Any]], patience: int | None) -> bool:
    return patience is not None and without_gain(log) >= patience


def loading_place() -> str | None:
    """Where a model is loaded that will be trained: on the CPU, if no GPU will hold all of it."""
    return "cpu" if is_sharded() else None


def whole(trainer: Any, fresh: Callable[[], Any]) -> Any:
    """The trained model in one piece, in the first process; the others get what they must not save.

    The weights of a model that is spread over processes (FSDP, ZeRO) are gathered into the one that `fresh` makes.
    """
    if not is_sharded():
        return trainer.model
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not is_first():
        return trainer.model
    model = fresh()
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    if unexpected or set(missing) - set(tied):
        raise RuntimeError(f"gathered weights are not those of the model: {[*missing, *unexpected][:3]}")
    return model


def _on_sigterm(action: Callable[[], None]) -> Any:
    return signal.signal(signal.SIGTERM, lambda *_: action())


def curve(log: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[dict[str, float]]:
    """The log as one row per step with `step` and the entries of `names` under their new names."""
    rows: dict[int, dict[str, float]] = {}
    for entry in log:
        found = {new: entry[old] for old, new in names.items() if old in entry}
        if found:
            rows.setdefault(entry["step"], {"step": entry["step"]}).update(found)
    return [rows[step] for step in sorted(rows)]
