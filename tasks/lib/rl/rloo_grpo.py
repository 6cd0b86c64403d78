"""RLOO (Ahmadian et al., arXiv 2402.14740) and GRPO (Shao et al., arXiv 2402.03300): TRL trains, PPO's judge decides.

There is no critic: an answer is compared with the other answers to its prompt. What differs from PPO is the update,
which is TRL's. Prompts, samples, scores, the rule for answers without EOS, judge, budgets and the choice of the best
policy are those of `ppo.py` and `ppo_training.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback

from tasks.lib.models.batches import position_ids
from tasks.lib.rl.actor_critic import ActorCritic
from tasks.lib.rl.ppo import Answers, Environment, final_scores, rewarded, roll_out
from tasks.lib.rl.ppo_training import begin, evaluate, finish, keep_or_stop, next_numbers
from tasks.lib.settings.ppo import PPOConfig
from tasks.lib.stage import Problem, Stage
from tasks.lib.training import hf_trainer
from tasks.lib.training.checkpoints import Checkpoint
from tasks.lib.training.distributed import is_first, joined, rank, world_size

SAID = {  # fields of TRL's configs, and the key of the section that says the same
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
SAMPLER = (  # fields that would have no effect, because answers are drawn as in PPO
    "top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs", "cache_implementation",
    "chat_template_kwargs", "shuffle_dataset", "use_vllm", "use_transformers_continuous_batching",
    "use_transformers_paged",
)  # fmt: skip
OTHERS = {
    "sync_ref_model": "the reference is the SFT model throughout",
    "logging_steps": "every step is logged",
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
) -> dict[str, Any]:
    """As `ppo_training.train`, with the fields `given` to TRL's config. The critic of `models` is not used."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    Config, Base = (RLOOConfig, RLOOTrainer) if method == "rloo" else (GRPOConfig, GRPOTrainer)
    settings = configured(Config, config, given, stage)
    trainer = _from(Base)(
        env=env,
        models=models,
        config=config,
        model=models.adapter or models.policy,
        args=settings,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": str(number)} for number in range(len(env.prompts))]),
    )
    judge = _Judge(models, env, config, stage)
    trainer.add_callback(judge)
    hf_trainer.train(trainer, stage, fingerprint, {}, border=config.epochs * config.minibatches)
    return finish(judge.run, models)


def configured(Config: type, config: PPOConfig, given: Mapping[str, Any], stage: Stage) -> Any:
    """TRL's config that does what the section says. Problem for a field of `given` that the section has, or none has.

    `batch_size` changes speed and memory only: a forward pass has the most rows up to it that divide an update.
    """
    for key in given:
        why = f"set ppo.{SAID[key]}" if key in SAID else OTHERS.get(key)
        why = "answers are drawn as in PPO, from the plain softmax" if key in SAMPLER else why
        if why:
            raise Problem(f"params.yaml: ppo.trainer.{key} cannot be set here: {why}")
    if config.beta_target is not None:
        raise Problem("params.yaml: ppo.beta_target is for ppo.method: ppo; set it to null")
    update, rest = divmod(config.episodes, config.minibatches * world_size())
    group = given.get("num_generations", Config.num_generations)  # type: ignore[attr-defined]
    if rest or config.episodes % group:
        what = f"trainer.num_generations = {group}" if config.episodes % group else "minibatches x processes"
        raise Problem(f"params.yaml: ppo.episodes = {config.episodes} is not a multiple of ppo.{what}")
    rows = max(n for n in range(1, min(update, config.batch_size) + 1) if update % n == 0)
    steps = config.epochs * config.minibatches
    return hf_trainer.configured(
        Config,
        stage,
        given,
        max_steps=config.iterations * steps,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=update // rows,
        steps_per_generation=config.minibatches * update // rows,
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


class _Stream(Sampler[int]):
    """The numbers of PPO's prompts, in groups, as often as TRL asks for them: once for each of its forward passes."""

    def __init__(self, env: Environment, config: PPOConfig, group: int, repeats: int) -> None:
        self.env, self.config, self.group, self.repeats = env, config, group, repeats

    def __len__(self) -> int:
        return self.config.iterations * self.repeats * self.config.episodes

    def __iter__(self) -> Iterator[int]:
        for iteration in range(1, self.config.iterations + 1):
            numbers = next_numbers(self.env, self.config.episodes // self.group, iteration)
            for _ in range(self.repeats):
                for number in numbers:
                    yield from [number] * self.group


def _from(Base: Any) -> Any:
    """TRL's trainer `Base` on the prompts, samples and rewards of PPO."""

    class Trainer(Base):
        def __init__(self, *, env: Environment, models: ActorCritic, config: PPOConfig, **settings: Any) -> None:
            self.env, self.models, self.ppo = env, models, config
            super().__init__(reward_funcs=self.scores, **settings)
            if models.adapter is not None:
                models.adapter.delete_adapter("ref")  # TRL's copy: the reference is the policy with its adapter off
            if self.ref_model is not None:
                models.reference_model = self.accelerator.unwrap_model(self.ref_model)
            for model in filter(None, (self.model, self.ref_model)):
                model.register_forward_pre_hook(_with_positions, with_kwargs=True)
            self.remove_callback(PrinterCallback)

        @property
        def iteration(self) -> int:
            return 1 + self.state.global_step // (self.ppo.epochs * self.ppo.minibatches)

        def _get_train_sampler(self, *_: Any) -> _Stream:
            repeats = self.args.steps_per_generation * self.num_iterations
            return _Stream(self.env, self.ppo, self.num_generations, repeats)

        def _tokenize_prompts(self, prompts: list[str]) -> tuple[Answers, None, dict[str, Any]]:
            return [self.env.prompts[int(number)].tokens for number in prompts], None, {}

        def _generate_single_turn(self, prompt_ids: Answers, *_: Any, **__: Any) -> Any:
            seed = self.env.seed_of("roll out", self.iteration)
            drawn = roll_out(self.models, joined(prompt_ids), self.env, self.ppo, seed)[0]
            answers = _own(drawn, len(prompt_ids))
            return (answers, None) if hasattr(self, "rollout_func") else answers  # GRPO: and their log-probs

        def scores(self, prompts: list[str], completion_ids: Answers, **_: Any) -> list[float]:
            chosen = [self.env.prompts[int(number)] for number in joined(prompts)]
            answers = joined(completion_ids)
            found = final_scores(*rewarded(chosen, answers, self.env, self.ppo, self.iteration), self.ppo)
            return _own(found.tolist(), len(prompts))

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


class _Judge(TrainerCallback):
    """Evaluates, keeps the best policy and stops as PPO does, at the end of an iteration; its state is in checkpoints.

    Log entries come after their step and before its checkpoint.
    """

    def __init__(self, models: ActorCritic, env: Environment, config: PPOConfig, stage: Stage) -> None:
        self.models, self.env, self.config, self.stage = models, env, config, stage
        self.steps = config.epochs * config.minibatches
        self.run: dict[str, Any] = {}
        self.logs: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        found = _beside(args, state).load() if state.global_step else None
        if found is None:
            self.run = begin(self.models, self.env, self.config)
        else:
            self.run = found[2] | {"kept": found[1]}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not logs or "train_runtime" in logs or self.run["stop"]:
            return
        self.logs.append(logs)
        if state.global_step % self.steps:
            return
        iteration, config = state.global_step // self.steps, self.config
        row = {"iteration": iteration, "beta": config.beta} | _figures(self.logs)
        self.logs = []
        self.run["log"].append(row)
        self.run["iteration"] = iteration
        if iteration % config.evaluate_every == 0 or iteration == config.iterations:
            row |= evaluate(self.models, self.env, config)
            keep_or_stop(self.run, row, self.models, config)
            control.should_training_stop |= bool(self.run["stop"])
        shown = {key: row[key] for key in ("reward", "kl", "validation_judge") if key in row}
        self.stage.progress(iteration, config.iterations, **shown)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if is_first():
            rest = {key: value for key, value in self.run.items() if key != "kept"}
            _beside(args, state).save(state.global_step, self.run["kept"], rest)


def _beside(args: Any, state: Any) -> Checkpoint:
    """What the judge knows, in the folder of the Trainer's checkpoint, whose fingerprint was compared already."""
    return Checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}", {})


def _figures(logs: list[dict[str, Any]]) -> dict[str, float]:
    """An iteration's figures under PPO's names: the mean over the entries that have them.

    `kl` is TRL's estimate in nats per answer: RLOO's of the samples, as PPO's; GRPO's of its loss, never negative.
    """
    found: dict[str, list[float]] = {}
    for log in logs:
        for key, value in log.items():
            if isinstance(value, int | float):
                found.setdefault(key, []).append(value)
    mean = {key: fmean(values) for key, values in found.items()}
    row = {name: mean[key] for key, name in FIGURES.items() if key in mean}
    row |= {"answer_tokens": mean["completions/mean_length"], "ended": 1 - mean["completions/clipped_ratio"]}
    return row | ({"kl": mean["kl"] * row["answer_tokens"]} if "kl" in mean else {})


def _own(rows: list[Any], count: int) -> list[Any]:
    """This process's `count` rows of all processes'."""
    return rows[rank() * count : (rank() + 1) * count]


def _with_positions(model: Any, args: Any, settings: dict[str, Any]) -> Any:
    """Positions count tokens, where TRL leaves them out: left padding would move them (N+ detail 6)."""
    mask = settings.get("attention_mask")
    if settings.get("fused_lm_head") and mask is not None and settings.get("position_ids") is None:
        settings["position_ids"] = position_ids(mask.bool())
    return args, settings
