"""The Trainer of transformers and TRL as a stage uses it: rows tokenized before, resumed after a kill, nothing sent.

`stage_trainer` makes the class, `train` runs it. TRL is imported by the stages, inside `run`: it takes seconds.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback

from tasks.lib.models.model_folder import first_line
from tasks.lib.stage import Problem, Stage
from tasks.lib.training.checkpoints import hf_checkpoint
from tasks.lib.training.distributed import first_before_others
from tasks.lib.training.evaluation_means import EvaluationMeans, sizes_of
from tasks.lib.training.launching import assert_kind
from tasks.lib.training.loss_guard import LossGuard, Spike
from tasks.lib.training.samplers import LengthSampler, TokenSampler
from tasks.lib.training.stopping import asked_to_stop
from tasks.lib.training.trainer_watch import Watch, patience_is_over

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports every trainer that is made
CPU_TILE = 8192  # tokens of the vocabulary in a tile of logits
# TRL asks transformers by an old name
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")


def stage_trainer(Base: Any) -> Any:
    """The trainer class `Base` of TRL or transformers for tokenized rows that carry `row`, their number.

    `lengths` and `ids` are those of the training rows. A batch has `batch_tokens` tokens in place of a number of rows
    where that is given. Rows of one of `groups` come next to each other. Every training loss has to pass a `LossGuard`
    of `first_loss` and `spike`.
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
            spike: Spike = "off",
            **settings: Any,
        ) -> None:
            self.lengths, self.batch_tokens, self.groups = lengths, batch_tokens, groups
            self.guard = LossGuard(ids, first_loss, spike)
            self.means: EvaluationMeans | None = None  # during an evaluation
            try:
                super().__init__(**settings)
            except (ValueError, NotImplementedError, ImportError) as error:
                raise Problem(f"no trainer can be made of these settings: {first_line(error)}") from None
            self.current_gradient_accumulation_steps = 1  # before training, which sets it at every step
            collate = self.data_collator
            self.data_collator = lambda rows: collate(rows) | {"row": torch.tensor([row["row"] for row in rows])}
            self.remove_callback(PrinterCallback)

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **settings: Any) -> Any:
            rows = inputs.pop("row").tolist()
            sizes = sizes_of(inputs) if self.means else {}
            result = super().compute_loss(model, inputs, *args, **settings)
            loss = result[0] if isinstance(result, tuple) else result
            if self.model.training:
                parts = self.current_gradient_accumulation_steps
                self.guard.check(loss.item(), rows, self.state.global_step, self.state.log_history, parts)
            elif self.means:
                self.means.add(loss.item(), self._metrics["eval"], sizes)
            return result

        def evaluation_loop(self, *args: Any, **settings: Any) -> Any:
            self.means = EvaluationMeans() if hasattr(self, "_metrics") else None  # TRL's
            output = super().evaluation_loop(*args, **settings)
            if self.means:
                output.metrics["eval_loss"] = self.means.loss()
                self._metrics["eval"].update(self.means.figures())
                self.means = None
            return output

        def _prepare_dataset(self, dataset: Any, *args: Any, **settings: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *args: Any) -> LengthSampler:
            return LengthSampler(self.lengths, self.args.train_batch_size, self.args.seed, self.groups)

        def get_train_dataloader(self) -> Any:
            if self.batch_tokens is None:
                return super().get_train_dataloader()
            batches = TokenSampler(self.lengths, self.batch_tokens, self.args.seed, self.accelerator.num_processes)
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


def _score_trained_positions_only() -> None:
    """Logits of prompt tokens are not computed: TRL saves them under Triton alone, the loss is the same without.

    It scores every position elsewhere so that shapes do not vary, which a CPU does not mind. There its tiles of logits,
    made for a GPU's kernels, are narrower, because each operation on one makes another.
    """
    from trl.trainer import utils

    utils._use_triton = lambda device: device.type in ("cpu", "cuda")
    if not torch.cuda.is_available():
        utils._CHUNKED_LOGPROB_CHUNK_SIZE = CPU_TILE


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
    end it. SIGTERM and Ctrl-C save after a step that is a multiple of `border`, then end the run with status 128 + the
    signal's number.
    """
    assert_kind(trainer.accelerator.distributed_type)
    with first_before_others():  # the first may discard it
        resume = hf_checkpoint(stage.checkpoints, fingerprint, lambda log: patience_is_over(log, patience))
    if resume is not None:
        print(f"{stage.name}: continuing from {resume}", flush=True)
        trainer.args.eval_on_start = False  # its figures are in the checkpoint's log
    with asked_to_stop(signal.SIGTERM, signal.SIGINT) as signals:
        trainer.add_callback(Watch(stage, fingerprint, shown, signals, border, patience))
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if signals:
        print(f"{stage.name}: stopped after step {trainer.state.global_step}; run it again to continue", flush=True)
        raise SystemExit(128 + signals[0])
    if trainer.eval_dataset is not None and not _is_evaluated(trainer.state):
        trainer.evaluate()
    log: list[dict[str, Any]] = trainer.state.log_history
    return log


def _is_evaluated(state: Any) -> bool:
    """Whether the model of the last step has been evaluated."""
    return any("eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history)


def curve(log: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[dict[str, float]]:
    """The log as one row per step with `step` and the entries of `names` under their new names."""
    rows: dict[int, dict[str, float]] = {}
    for entry in log:
        for old, new in names.items():
            if old in entry:
                rows.setdefault(entry["step"], {"step": entry["step"]})[new] = entry[old]
    return [rows[step] for step in sorted(rows)]
