"""RLOO (Ahmadian et al., arXiv 2402.14740) and GRPO (Shao et al., arXiv 2402.03300): TRL trains, PPO's judge decides.

There is no critic: an answer is compared with the other answers to its prompt. What differs from PPO is the update,
which is TRL's, the KL penalty (`beta`) included: RLOO takes it from an answer's score, GRPO adds it to the loss.
Prompts, samples, scores, the rule for answers without EOS, judge, budgets and the choice of the best policy are those
of `ppo.py` and `ppo_training.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeVar

from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback

from tasks.lib.models.batches import position_ids
from tasks.lib.rl.actor_critic import ActorCritic
from tasks.lib.rl.batch import Batch, Prompt, TokenIds
from tasks.lib.rl.environment import Environment
from tasks.lib.rl.ppo import roll_out, score_answers
from tasks.lib.rl.ppo_training import Row, Run, begin, finish, next_prompt_numbers, progress_figures, record
from tasks.lib.settings.ppo import PPOConfig
from tasks.lib.stage import Problem, Stage
from tasks.lib.training import hf_trainer, trainer_config
from tasks.lib.training.checkpoints import Checkpoint
from tasks.lib.training.distributed import is_first, joined, rank, world_size

T = TypeVar("T")
KEY_OF_FIELD = {  # fields of TRL's configs, and the key of the section `ppo` that sets them
    "max_steps": "iterations",
    "num_train_epochs": "iterations",
    "generation_batch_size": "episodes",
    "num_iterations": "epochs",
    "steps_per_generation": "minibatches",
    "gradient_accumulation_steps": "minibatches",
    "per_device_train_batch_size": "batch_size",
    "max_completion_length": "max_new_tokens",
    "temperature": "temperature",
    "beta": "beta",
    "epsilon": "clip_ratio",
    "learning_rate": "learning_rate",
    "lr_scheduler_type": "learning_rate_decay",
    "adam_epsilon": "adam_eps",
    "max_grad_norm": "max_grad_norm",
    "eval_strategy": "evaluate_every",
    "eval_steps": "evaluate_every",
    "save_steps": "checkpoint_every",
}
SAMPLING_FIELDS = (  # they would have no effect, because answers are drawn as in PPO
    "top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs", "cache_implementation",
    "chat_template_kwargs", "use_vllm", "use_transformers_continuous_batching",
    "use_transformers_paged",
)  # fmt: skip
FIXED_FIELDS = {
    "sync_ref_model": "the reference is the SFT model throughout",
    "reward_weights": "there is one reward",
}
FIGURES = {  # of TRL's log, and the names that PPO has for them
    "reward": "reward",
    "loss": "policy_loss",
    "clip_ratio/region_mean": "clip_share",
    "grad_norm": "grad_norm",
    "frac_reward_zero_std": "no_signal",  # share of the prompts whose answers all score the same
}


def train(
    method: Literal["rloo", "grpo"],
    models: ActorCritic,
    env: Environment,
    config: PPOConfig,
    given: Mapping[str, Any],
    tokenizer: Any,
    stage: Stage,
    fingerprint: dict[str, Any],
) -> Run:
    """As `ppo_training.train`, with the fields `given` to TRL's config. The critic of `models` is not used."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    Config, Base = (RLOOConfig, RLOOTrainer) if method == "rloo" else (GRPOConfig, GRPOTrainer)
    settings = configured(Config, config, given, stage)
    trainer = _on_our_samples(Base)(
        env=env,
        models=models,
        config=config,
        model=models.adapter or models.policy,
        args=settings,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": str(number)} for number in range(len(env.prompts))]),
    )
    best_policy = _BestPolicy(models, env, config, stage)
    trainer.add_callback(best_policy)
    hf_trainer.train(trainer, stage, fingerprint, {}, border=config.epochs * config.minibatches)
    return finish(best_policy.run, models)


def configured(Config: type, config: PPOConfig, given: Mapping[str, Any], stage: Stage) -> Any:
    """TRL's config that does what the section says.

    A forward pass of an update has the largest number of rows, up to `batch_size`, that divides those of the update.
    Problem for a field of `given` that a key of the section sets, or that would have no effect.
    """
    for name in given:
        reason = _why_not(name)
        if reason:
            raise Problem(f"params.yaml: ppo.trainer.{name} cannot be set here: {reason}")
    rows_per_update, rest = divmod(config.episodes, config.minibatches * world_size())
    answers_per_prompt = given.get("num_generations", Config.num_generations)  # type: ignore[attr-defined]
    what = ""
    if config.episodes % answers_per_prompt:
        what = f"trainer.num_generations = {answers_per_prompt}"
    elif rest:
        what = "minibatches x processes"
    if what:
        raise Problem(f"params.yaml: ppo.episodes = {config.episodes} is not a multiple of ppo.{what}")
    rows_per_pass = min(rows_per_update, config.batch_size)
    while rows_per_update % rows_per_pass:
        rows_per_pass -= 1
    steps = config.epochs * config.minibatches  # per iteration
    return trainer_config.configured(
        Config,
        stage,
        given,
        max_steps=config.iterations * steps,
        per_device_train_batch_size=rows_per_pass,
        gradient_accumulation_steps=rows_per_update // rows_per_pass,
        steps_per_generation=config.minibatches * rows_per_update // rows_per_pass,
        num_iterations=config.epochs,
        max_completion_length=config.max_new_tokens,
        temperature=config.temperature,
        beta=config.beta,
        epsilon=config.clip_ratio,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear" if config.learning_rate_decay == "linear" else "constant",
        adam_epsilon=config.adam_eps,
        max_grad_norm=config.max_grad_norm or 0.0,
        eval_strategy="no",
        save_steps=config.checkpoint_every * steps,
    )


def _why_not(name: str) -> str | None:
    """Why a field of TRL's config cannot be set, None if it can."""
    if name in KEY_OF_FIELD:
        return f"set ppo.{KEY_OF_FIELD[name]}"
    if name in SAMPLING_FIELDS:
        return "answers are drawn as in PPO, from the plain softmax"
    return FIXED_FIELDS.get(name)


class _Stream(Sampler[int]):
    """The numbers of PPO's prompts, in groups, as often as TRL asks for them: once for each of its forward passes."""

    def __init__(self, env: Environment, config: PPOConfig, group: int, repeats: int) -> None:
        self.env, self.config, self.group, self.repeats = env, config, group, repeats

    def __len__(self) -> int:
        return self.config.iterations * self.repeats * self.config.episodes

    def __iter__(self) -> Iterator[int]:
        for iteration in range(1, self.config.iterations + 1):
            numbers = next_prompt_numbers(self.env, self.config.episodes // self.group, iteration)
            for _ in range(self.repeats):
                for number in numbers:
                    yield from [number] * self.group


def _on_our_samples(Base: Any) -> Any:
    """TRL's trainer `Base` on the prompts, samples and scores of PPO. A text is the number of a prompt to it."""

    class Trainer(Base):
        def __init__(self, *, env: Environment, models: ActorCritic, config: PPOConfig, **settings: Any) -> None:
            self.env, self.models, self.ppo = env, models, config
            super().__init__(reward_funcs=self.scores, **settings)
            if models.adapter is not None:
                models.adapter.delete_adapter("ref")  # TRL's copy: the reference is the policy with its adapter off
            if self.ref_model is not None:
                models.reference_model = self.accelerator.unwrap_model(self.ref_model)
            for model in (self.model, self.ref_model):
                if model is not None:
                    model.register_forward_pre_hook(_with_positions, with_kwargs=True)
            self.remove_callback(PrinterCallback)

        @property
        def iteration(self) -> int:
            return 1 + self.state.global_step // (self.ppo.epochs * self.ppo.minibatches)

        def _get_train_sampler(self, *_: Any) -> _Stream:
            repeats = self.args.steps_per_generation * self.num_iterations
            return _Stream(self.env, self.ppo, self.num_generations, repeats)

        def _tokenize_prompts(self, prompts: list[str]) -> tuple[TokenIds, None, dict[str, Any]]:
            return [self.env.prompts[int(number)].tokens for number in prompts], None, {}

        def _generate_single_turn(self, prompt_ids: TokenIds, *_: Any, **__: Any) -> Any:
            prompts = [Prompt("", tokens) for tokens in joined(prompt_ids)]
            seed = self.env.seed_of("roll out", self.iteration)
            batch = roll_out(self.models, prompts, self.env, self.ppo, seed)
            answers = _rows_of_this_process(batch.answers, len(prompt_ids))
            if hasattr(self, "rollout_func"):  # GRPO takes log-probs, too
                return answers, None
            return answers

        def scores(self, prompts: list[str], completion_ids: TokenIds, **_: Any) -> list[float]:
            chosen = [self.env.prompts[int(number)] for number in joined(prompts)]
            batch = Batch(chosen, joined(completion_ids), self.ppo.batch_size)
            scores = score_answers(batch, self.env, self.ppo, self.iteration)
            return _rows_of_this_process(scores.tolist(), len(prompts))

        def compute_loss(self, *args: Any, **settings: Any) -> Any:
            loss = super().compute_loss(*args, **settings)
            if not math.isfinite(loss.item()):
                raise Problem(
                    f"ppo: iteration {self.iteration}: the loss is {loss.item():.3g}; no step was taken; "
                    "lower ppo.learning_rate"
                )
            return loss

        def create_model_card(self, *_: Any, **__: Any) -> None:
            """TRL writes a card into every checkpoint; ours is written at the release."""

        def _send_telemetry(self) -> None:
            """Nothing is sent."""

    return Trainer


class _BestPolicy(TrainerCallback):
    """Evaluates, keeps the best policy and stops as PPO does, at the end of an iteration; its state is in checkpoints.

    Log entries come after their step and before its checkpoint.
    """

    run: Run

    def __init__(self, models: ActorCritic, env: Environment, config: PPOConfig, stage: Stage) -> None:
        self.models, self.env, self.config, self.stage = models, env, config, stage
        self.steps = config.epochs * config.minibatches
        self.logs: list[dict[str, Any]] = []  # TRL's entries of the iteration so far

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        saved = _checkpoint_of_run(args, state).load() if state.global_step else None
        if saved is None:
            self.run = begin(self.models, self.env, self.config)
        else:
            _step, kept, run_state = saved
            self.run = Run(**run_state, kept=kept)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not logs or "train_runtime" in logs or self.run.stop:
            return
        self.logs.append(logs)
        if state.global_step % self.steps:
            return
        iteration = state.global_step // self.steps
        row: Row = {"iteration": iteration, "beta": self.config.beta}
        row |= _figures(self.logs)
        self.logs = []
        record(self.run, row, iteration, self.models, self.env, self.config)
        control.should_training_stop |= bool(self.run.stop)
        self.stage.progress(iteration, self.config.iterations, **progress_figures(row))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if is_first():
            _checkpoint_of_run(args, state).save(state.global_step, self.run.kept, self.run.state())


def _checkpoint_of_run(args: Any, state: Any) -> Checkpoint:
    """Of PPO's `Run`, in the folder of the Trainer's checkpoint, whose fingerprint was compared already."""
    return Checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}", {})


def _figures(logs: list[dict[str, Any]]) -> Row:
    """An iteration's figures under PPO's names: the mean over the entries that have them.

    `kl` is TRL's estimate in nats per answer: RLOO's of the samples, as PPO's; GRPO's of its loss, never negative.
    """
    values: dict[str, list[float]] = {}
    for log in logs:
        for key, value in log.items():
            if isinstance(value, int | float):
                values.setdefault(key, []).append(value)
    mean = {key: fmean(each) for key, each in values.items()}
    row = {name: mean[key] for key, name in FIGURES.items() if key in mean}
    row["answer_tokens"] = mean["completions/mean_length"]
    row["ended"] = 1 - mean["completions/clipped_ratio"]
    if "kl" in mean:
        row["kl"] = mean["kl"] * row["answer_tokens"]
    return row


def _rows_of_this_process(rows: list[T], count: int) -> list[T]:
    """This process's `count` rows of all processes'."""
    return rows[rank() * count : (rank() + 1) * count]


def _with_positions(model: Any, args: Any, settings: dict[str, Any]) -> Any:
    """Positions count tokens, where TRL leaves them out: left padding would move them (N+ detail 6)."""
    mask = settings.get("attention_mask")
    if settings.get("fused_lm_head") and mask is not None and settings.get("position_ids") is None:
        settings["position_ids"] = position_ids(mask.bool())
    return args, settings
