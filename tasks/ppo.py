"""ppo: reinforcement learning from a reward, until the score of a judge that is not the reward stops improving.

Reads   models/sft, models/reward, data/curated/{policy,validation}.parquet, ppo.panel with judge: gold,
        ppo.reward_code with reward: {function: FILE:NAME}
Writes  models/ppo, reports/ppo.json, reports/plots/ppo.csv, reports/plots/ppo.png
Run     python -m tasks.ppo
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from tasks.lib.data.rows import read_parquet
from tasks.lib.evaluation.panel import Panel, read_panel
from tasks.lib.finetuning.lora import save_adapted
from tasks.lib.models.chat import all_prompt_ids, answer_text, load_tokenizer
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.models.model_folder import weights_hash
from tasks.lib.models.precision import kept_dtype
from tasks.lib.plots import curves
from tasks.lib.reward import reward_model
from tasks.lib.rl import ppo_training, rloo_grpo
from tasks.lib.rl.actor_critic import ActorCritic
from tasks.lib.rl.batch import Batch, Pass, Prompt
from tasks.lib.rl.environment import Environment, RewardFunction
from tasks.lib.rl.ppo_training import Run
from tasks.lib.rl.verifiable_rewards import exact, verifiable_reward
from tasks.lib.rl.vllm_server import VllmServer
from tasks.lib.settings.ppo import Params
from tasks.lib.stage import Problem, Stage, file_hash, main
from tasks.lib.training.checkpoints import Checkpoint
from tasks.lib.training.distributed import by_first, is_first
from tasks.lib.training.launching import under_launcher
from tasks.lib.training.read_back import ROWS, save_as_trained

SFT, REWARD, OUT = Path("models/sft"), Path("models/reward"), Path("models/ppo")
PROMPTS, VALIDATION = Path("data/curated/policy.parquet"), Path("data/curated/validation.parquet")
PANELS = {
    "Reward (what is trained on)": ["reward", "validation_reward"],
    "Judge (what is wanted)": ["validation_judge", "validation_content"],
    "KL from the SFT model": ["kl", "validation_kl"],
    "Updates": ["approx_kl", "clip_share"],
}


def run(params: Params, stage: Stage) -> None:
    # 1. Prompts, reward, judge and models.
    panel = read_panel(params.panel) if params.judge == "gold" else None
    dtype = torch.float32 if params.lora is None else None  # adapters stand on the weights as they are kept
    tokenizer, policy = load_tokenizer(SFT), load_policy(SFT, dtype=dtype)
    reward, reward_model_if_any = reward_of(params, tokenizer)
    context = reward_model.room_of(policy)
    max_tokens = None if context is None else context - params.max_new_tokens  # of a prompt
    server = None
    if params.vllm:
        server = VllmServer(params.vllm, params, tokenizer.eos_token_id, stage.checkpoints / "vllm")
    env = Environment(
        prompts=prompts_of(PROMPTS, tokenizer, max_tokens),
        validation=prompts_of(VALIDATION, tokenizer, max_tokens, params.validation_prompts),
        reward=reward,
        judge=judge_of(reward, panel, tokenizer),
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
        seed_of=stage.seed_of,
        generate=server.answers if server else None,
    )
    separate_critic = params.method == "ppo" and params.critic == "reward"
    critic_from = reward_model_if_any if separate_critic else None
    models = ActorCritic(policy, critic_from, params.lora, stage.seed_of("adapters"))

    # 2. Train.
    fingerprint = fingerprint_of(params, stage)
    checkpoint = Checkpoint(stage.checkpoints, fingerprint)
    if params.method == "ppo":
        result = ppo_training.train(models, env, params, checkpoint, stage.progress)
    else:
        result = rloo_grpo.train(params.method, models, env, params, params.trainer, tokenizer, stage, fingerprint)

    # 3. Save the best policy and say how it differs from the one at the start. One process does.
    if not is_first():
        return
    trained = sum(p.numel() for p in models.policy_parameters().values())
    rows = [prompt.tokens for prompt in env.validation[:ROWS]]
    save_as_trained(lambda: save(models, tokenizer), OUT, models.policy, rows, SFT)
    curves(Path("reports/plots/ppo"), result.log, "iteration", PANELS)
    report = report_of(params, env, result, trained)
    if server:
        report["vllm_logprob_gap"] = server.gap
    stage.report(report)
    checkpoint.clear()
    print(f"ppo: {result.stop}; iteration {result.best} is kept{refusals(result)}", flush=True)


def save(models: ActorCritic, tokenizer: Any) -> None:
    """Write the policy: its weights, or its adapter on the SFT model."""
    if models.adapter is None:
        save_model(models.policy, tokenizer, OUT, dtype=kept_dtype(SFT))
    else:
        save_adapted(models.adapter, tokenizer, SFT, OUT)


def fingerprint_of(params: Params, stage: Stage) -> dict[str, Any]:
    """Everything that decides the result: a checkpoint of another fingerprint is not resumed."""
    inputs = {str(folder): weights_hash(folder) for folder in (SFT, REWARD)}
    files = [PROMPTS, VALIDATION]
    if params.judge == "gold":
        files.append(params.panel)
    if isinstance(params.reward, dict):
        files += sorted(params.reward_code.rglob("*.py"))
    for file in files:
        inputs[str(file)] = file_hash(file)
    return {"params": params.model_dump(mode="json"), "seed": stage.seed, "inputs": inputs}


def report_of(params: Params, env: Environment, result: Run, trained: int) -> dict[str, Any]:
    """The report: what was trained on, where the run ended, and the judge's figures before and after."""
    report: dict[str, Any] = {
        "prompts": len(env.prompts),
        "validation_prompts": len(env.validation),
        "judged_by": str(params.panel) if params.judge == "gold" else "the reward on held-out prompts",
        "trainable_parameters": trained,
        "iterations": result.iteration,
        "best_iteration": result.best,
        "stop": result.stop,
        "refused_for_content": len(result.refused),
    }
    before, after = result.log[0], result.log[result.best]
    for name in before:
        if name.startswith("validation_"):
            key = name.removeprefix("validation_")
            report[f"{key}_before"], report[f"{key}_after"] = before[name], after[name]
    return report


def refusals(result: Run) -> str:
    """Which iterations the content limit alone kept from being the best, in words."""
    if not result.refused:
        return ""
    named = ", ".join(map(str, result.refused))
    return f"; {named} scored higher but lost more content than max_content_loss"


def prompts_of(path: Path, tokenizer: Any, max_tokens: int | None, count: int | None = None) -> list[Prompt]:
    """The prompts of a file, or the first `count` by id: ids are hashes, a fair choice. Problem for one of more than
    `max_tokens` tokens."""
    rows = sorted(read_parquet(path), key=lambda row: row["id"])[:count]
    if not rows:
        raise Problem(f"{path} has no rows; raise its share in render.shares")
    encoded = all_prompt_ids(tokenizer, [row["messages"] for row in rows])
    prompts = [Prompt(row["id"], ids, row) for row, ids in zip(rows, encoded, strict=True)]
    for prompt in prompts:
        if max_tokens is not None and len(prompt.tokens) > max_tokens:
            raise Problem(
                f"{path}:{prompt.id}: the prompt has {len(prompt.tokens)} tokens and leaves no room for "
                f"ppo.max_new_tokens; at most {max_tokens} fit: lower it, or drop long rows in curate"
            )
    return prompts


def reward_of(params: Params, tokenizer: Any) -> tuple[RewardFunction, Any]:
    """The reward that is learned from, and its reward model; None for a verifiable reward."""
    if params.reward != "model":
        verifiable = verifiable_reward(params.reward, params.reward_code, tokenizer)
        return lambda batch: by_first(lambda: verifiable(batch)), None
    model = reward_model.load_reward(REWARD)
    if params.disagreement_weight and not hasattr(model.config, "reward_head_means"):
        raise Problem("params.yaml: ppo.disagreement_weight needs an ensemble: set reward.heads above 1")

    def of_pass(part: Pass) -> list[float]:
        return reward_model.score(
            model,
            part.prompts,
            part.answers,
            batch_size=params.batch_size,
            disagreement_weight=params.disagreement_weight,
        )

    return lambda batch: batch.map(of_pass), model


def judge_of(reward: RewardFunction, panel: Panel | None, tokenizer: Any) -> Callable[[Batch], dict[str, float]]:
    """The judge: means over a batch of its own score, of the reward, and of whether the content is right.

    With a panel its score is the panel's utility, without one it is the reward. `content` is the mean of how right the
    answers are, a closing aside: the measure of the row's task says it.
    """

    def judge(batch: Batch) -> dict[str, float]:
        utilities, right = [], []
        for prompt, answer in zip(batch.prompts, batch.answers, strict=True):
            text, row = answer_text(tokenizer, answer), prompt.row
            if panel is None:
                right += exact([text], [row])
            else:
                utilities.append(panel.utility(row, text))
                right.append(panel.score(row, text))
        mean_reward = mean(reward(batch))
        if panel is None:
            return {"judge": mean_reward, "reward": mean_reward, "content": mean(right)}
        return {"judge": mean(utilities), "reward": mean_reward, "content": mean(right)}

    return judge


if __name__ == "__main__":
    main(__file__, Params, under_launcher(run))
