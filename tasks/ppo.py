"""ppo: reinforcement learning from a reward, until a judge that is not the reward has enough.

Reads   models/sft, models/reward, data/curated/{policy,validation}.parquet, the panel if `judge` names one
Writes  models/ppo, reports/ppo.json, reports/plots/ppo.csv, reports/plots/ppo.png
Run     python -m tasks.ppo
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from tasks.lib.data.rows import read_parquet
from tasks.lib.evaluation.judge import Panel, read_panel
from tasks.lib.models.chat import all_prompt_ids, answer_text, load_tokenizer
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.models.model_folder import weights_hash
from tasks.lib.models.passes import in_passes, lengths_of
from tasks.lib.plots import curves
from tasks.lib.reward.reward_model import load_reward, score
from tasks.lib.rl import rloo_grpo as grouped
from tasks.lib.rl.actor_critic import ActorCritic
from tasks.lib.rl.ppo import Answers, Environment, Prompt, Reward
from tasks.lib.rl.ppo_training import train
from tasks.lib.rl.verifiable_rewards import verified
from tasks.lib.rl.vllm_server import VllmServer
from tasks.lib.settings.ppo import Params
from tasks.lib.stage import Problem, Stage, main
from tasks.lib.training.checkpoints import Checkpoint, file_hash
from tasks.lib.training.distributed import by_first, is_first, spread
from tasks.lib.training.launching import under_launcher

SFT, REWARD, OUT = Path("models/sft"), Path("models/reward"), Path("models/ppo")
PROMPTS, VALIDATION = Path("data/curated/policy.parquet"), Path("data/curated/validation.parquet")
PANELS = {
    "Reward (what is trained on)": ["reward", "validation_reward"],
    "Judge (what is wanted)": ["validation_judge", "validation_content"],
    "KL from the SFT model": ["kl", "validation_kl"],
    "Updates": ["approx_kl", "clip_share"],
}


def run(params: Params, stage: Stage) -> None:
    # 1. Prompts, judge and models.
    if params.trainer and params.method == "ppo":
        raise Problem("params.yaml: ppo.trainer is for ppo.method: rloo or grpo; PPO's settings are keys of ppo")
    panel = read_panel(Path(params.judge)) if params.judge else None
    tokenizer, policy = load_tokenizer(SFT), load_policy(SFT)
    reward, reward_model = reward_of(params, tokenizer)
    room = getattr(policy.config, "max_position_embeddings", 1 << 30) - params.max_new_tokens
    prompts = prompts_of(PROMPTS, tokenizer, room)
    validation = prompts_of(VALIDATION, tokenizer, room, params.validation_prompts)

    server = None
    if params.vllm:
        server = VllmServer(params.vllm, params, tokenizer.eos_token_id, stage.checkpoints / "vllm")
    env = Environment(
        prompts=prompts,
        validation=validation,
        reward=reward,
        judge=judge_of(validation, reward, panel, tokenizer),
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
        seed_of=stage.seed_of,
        generate=server.answers if server else None,
    )
    models = ActorCritic(
        policy,
        reward_model if params.method == "ppo" and params.critic == "reward" else None,
        params.lora,
        stage.seed_of("adapters"),
    )

    # 2. Train. Everything that decides the result is in the fingerprint of the checkpoint.
    files = [PROMPTS, VALIDATION, *([Path(params.judge)] if params.judge else [])]
    inputs = {str(path): weights_hash(path) for path in (SFT, REWARD)}
    inputs |= {str(path): file_hash(path) for path in files}
    if isinstance(params.reward, dict):
        inputs |= {str(path): file_hash(path) for path in sorted(Path(params.reward_code).rglob("*.py"))}
    fingerprint = {"params": params.model_dump(), "seed": stage.seed, "inputs": inputs}
    checkpoint = Checkpoint(stage.checkpoints, fingerprint)
    if params.method == "ppo":
        result = train(models, env, params, checkpoint, stage.progress)
    else:
        result = grouped.train(params.method, models, env, params, params.trainer, tokenizer, stage, fingerprint)

    # 3. Save the best policy and say how it differs from the one at the start. One process does.
    if not is_first():
        return
    trained = sum(p.numel() for p in models.policy_parameters().values())
    save_model(models.merged(), tokenizer, OUT)
    curves(Path("reports/plots/ppo"), result["log"], "iteration", PANELS)
    before, after = (next(r for r in result["log"] if r["iteration"] == i) for i in (0, result["best"]))
    measured = [key.removeprefix("validation_") for key in before if key.startswith("validation_")]
    report: dict[str, Any] = {
        "prompts": len(prompts),
        "validation_prompts": len(validation),
        "judged_by": params.judge or "the reward on held-out prompts",
        "trainable_parameters": trained,
        "iterations": result["log"][-1]["iteration"],
        "best_iteration": result["best"],
        "stop": result["stop"],
        "refused_for_content": len(result["refused"]),
    }
    for key in measured:
        report |= {f"{key}_before": before[f"validation_{key}"], f"{key}_after": after[f"validation_{key}"]}
    if server:
        report["vllm_logprob_gap"] = server.gap
    stage.report(report)
    checkpoint.clear()
    print(f"ppo: {result['stop']}; iteration {result['best']} is kept{refusals(result)}", flush=True)


def refusals(result: dict[str, Any]) -> str:
    """Which iterations the content limit alone kept from being the best, in words."""
    named = ", ".join(map(str, result["refused"]))
    return f"; {named} scored higher but lost more content than max_content_loss" if named else ""


def prompts_of(path: Path, tokenizer: Any, room: int, count: int | None = None) -> list[Prompt]:
    """The prompts of a file, or the first `count` by id: ids are hashes, a fair choice."""
    rows = sorted(read_parquet(path), key=lambda row: row["id"])[:count]
    if not rows:
        raise Problem(f"{path} has no rows; raise its share in render.shares")
    encoded = all_prompt_ids(tokenizer, [row["messages"] for row in rows])
    prompts = [Prompt(row["id"], ids, row) for row, ids in zip(rows, encoded, strict=True)]
    for prompt in prompts:
        if len(prompt.tokens) > room:
            raise Problem(
                f"{path}:{prompt.id}: the prompt has {len(prompt.tokens)} tokens and leaves no room for "
                f"ppo.max_new_tokens; at most {room} fit: lower it, or drop long rows in curate"
            )
    return prompts


def reward_of(params: Params, tokenizer: Any) -> tuple[Reward, Any]:
    """What is learned from, and the reward model if it is that."""
    if params.reward != "model":
        if (params.method == "ppo" and params.critic == "reward") or params.disagreement_weight:
            key = "disagreement_weight" if params.disagreement_weight else "critic: reward"
            raise Problem(f"params.yaml: ppo.{key} needs ppo.reward: model, not {params.reward!r}")
        verify = verified(params.reward, Path(params.reward_code), tokenizer)
        return lambda prompts, answers: by_first(lambda: verify(prompts, answers)), None
    model = load_reward(REWARD)
    if params.disagreement_weight and not hasattr(model.config, "reward_head_means"):
        raise Problem("params.yaml: ppo.disagreement_weight needs an ensemble: set reward.heads above 1")

    def reward(prompts: Sequence[Prompt], answers: Answers) -> list[float]:
        lengths = lengths_of([prompt.tokens for prompt in prompts], answers)
        return spread(
            in_passes(range(len(prompts)), lengths, params.batch_size),
            lambda rows: score(
                model,
                [prompts[i].tokens for i in rows],
                [answers[i] for i in rows],
                batch_size=params.batch_size,
                disagreement_weight=params.disagreement_weight,
            ),
        )

    return reward, model


def judge_of(
    prompts: Sequence[Prompt],
    reward: Reward,
    panel: Panel | None,
    tokenizer: Any,
) -> Callable[[Answers], dict[str, float]]:
    """Mean judge's score, content accuracy and reward of answers to the validation rows."""

    rows = [prompt.row for prompt in prompts]

    def judge(answers: Answers) -> dict[str, float]:
        texts = [answer_text(tokenizer, answer) for answer in answers]
        proxy = mean(reward(prompts, answers))
        if panel is None:
            right = [text in (row["label"], row["answer"]) for row, text in zip(rows, texts, strict=True)]
            return {"judge": proxy, "reward": proxy, "content": mean(right)}
        labelled = [(row["label"], text) for row, text in zip(rows, texts, strict=True)]
        return {
            "judge": mean(panel.utility(label, text) for label, text in labelled),
            "reward": proxy,
            "content": mean(panel.is_right(label, text) for label, text in labelled),
        }

    return judge


if __name__ == "__main__":
    main(__file__, Params, under_launcher(run))
