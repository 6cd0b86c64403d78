"""One iteration of PPO: CPU seconds of ours and of TRL 1.12's PPOTrainer, on equal models, prompts, answers and epochs.

Both sample (16 tokens), then train on the same given answers. Advantages and the losses of all epochs of the first
iteration are compared before any second is reported. One thread, the least of the warm iterations of all rounds.

Run     python -m benchmarks.ppo_step VENV/bin/python        (its packages: see benchmarks/trl_ppo.py)
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.trl_ppo import four_models, sizes
from tasks.lib.reward.reward_model import score
from tasks.lib.rl import ppo
from tasks.lib.rl.actor_critic import ActorCritic
from tasks.lib.rl.batch import Batch, Pass, Prompt
from tasks.lib.rl.environment import Environment
from tasks.lib.settings.ppo import PPOConfig
from tasks.lib.stage import read_yaml

PARAMS = Path(__file__).resolve().parents[1] / "params.yaml"
DEMO = {
    "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
    "num_attention_heads": 4, "max_position_embeddings": 128, "tie_word_embeddings": True,
}  # fmt: skip
SETTINGS = {"kl_coef": 0.05, "gamma": 1.0, "lam": 0.95, "cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1,
            "num_ppo_epochs": 4, "temperature": 0.7, "learning_rate": 3e-5, "adam_epsilon": 1e-5}  # fmt: skip

SHARED: dict[str, tuple[str, dict[str, Any] | None]] = {
    "ours, four models": ("reward", None),
    "ours, critic: a head on the policy": ("policy", None),
    "ours, as the demo: and adapters": ("policy", {"r": 8, "lora_alpha": 16}),
}


def cut(answer: list[int]) -> list[int]:
    """The answer up to and with its EOS."""
    return answer[: answer.index(1) + 1]


def demo_case(episodes: int = 128, width: int = 16, iterations: int = 3) -> dict[str, Any]:
    """Prompts of 12 to 40 tokens and answers of 2 to 10, as the demo's are; the last answer is the longest."""
    chance = random.Random(0)

    def tokens(low: int, high: int) -> list[int]:
        return [chance.randrange(2, 1024) for _ in range(chance.randint(low, high))]

    prompts = [tokens(12, 40) for _ in range(episodes)]
    answers = [[*tokens(1, 9), 1] for _ in range(episodes - 1)]
    answers.append([*tokens(width - 2, width - 2), 1])
    padded = [answer + [0] * (width - len(answer)) for answer in answers]
    return {"shape": DEMO, "prompts": prompts, "answers": padded, "settings": SETTINGS, "iterations": iterations}


def config_of(case: dict[str, Any], epochs: int) -> PPOConfig:
    """TRL's settings by our names; the others are those of params.yaml."""
    section, given = read_yaml(PARAMS)["ppo"], case["settings"]
    settings = {key: section[key] for key in PPOConfig.model_fields}
    settings |= dict(
        iterations=24, episodes=len(case["prompts"]), batch_size=64, epochs=epochs,
        max_new_tokens=len(case["answers"][0]), temperature=given["temperature"], beta=given["kl_coef"],
        gamma=given["gamma"], lam=given["lam"], clip_ratio=given["cliprange"], clip_value=given["cliprange_value"],
        value_weight=given["vf_coef"], learning_rate=given["learning_rate"], adam_eps=given["adam_epsilon"],
        missing_eos="keep", whiten_advantages=False,
    )  # fmt: skip
    return PPOConfig(**settings)


class Ours:
    """Our models on a case, and one iteration of them."""

    def __init__(
        self, case: dict[str, Any], epochs: int, critic: str = "reward", lora: dict[str, Any] | None = None
    ) -> None:
        given = four_models(case["shape"])
        for model in given.values():
            model.config.reward_mean, model.config.reward_std = 0.0, 1.0
        self.case, self.config, self.reward = case, config_of(case, epochs), given["reward"]
        self.models = ActorCritic(given["policy"], given["critic"] if critic == "reward" else None, lora)
        if lora is None:
            self.models.reference_model = given["reference"].requires_grad_(False)
        learned = self.models.policy_parameters() | self.models.critic_parameters()
        learned.pop("value_head.bias")  # TRL's critic has none
        self.optimizer = torch.optim.AdamW(
            learned.values(), lr=case["settings"]["learning_rate"], eps=self.config.adam_eps, weight_decay=0.0
        )
        self.prompts = [Prompt(str(number), tokens) for number, tokens in enumerate(case["prompts"])]
        self.answers = [cut(answer) for answer in case["answers"]]
        self.env = Environment(self.prompts, [], self.scores, lambda _: {}, 1, 0, lambda *words: len(str(words)))

    def scores(self, batch: Batch) -> list[float]:
        def of_pass(part: Pass) -> list[float]:
            return score(self.reward, part.prompts, part.answers, batch_size=batch.batch_size)

        return batch.map(of_pass)

    def iteration(self, whitened: torch.Tensor | None = None, number: int = 1) -> dict[str, Any]:
        """One iteration on the given answers. Advantages are whitened as TRL does unless given."""
        ppo.roll_out(self.models, self.prompts, self.env, self.config, seed=number)
        paused = time.process_time()  # what the injection needs is no cost: of ours as of TRL's
        batch = Batch(self.prompts, self.answers, self.config.batch_size)
        logprobs = ppo.sequence_logprobs(self.models.policy, batch, self.config.temperature)
        batch = replace(batch, sampled_logprobs=[row.tolist() for row in logprobs])
        self.injection = time.process_time() - paused
        episodes = ppo.score(self.models, batch, self.env, self.config, number)
        rewards = ppo.token_rewards(episodes, self.config, self.config.beta)
        plain, returns = ppo.estimate_advantages(rewards, episodes, self.config)
        used = ppo.whiten(plain, episodes.is_action) if whitened is None else whitened
        figures = ppo.update(self.models, self.optimizer, episodes, used, returns, self.env.seed_of, self.config)
        return {"advantages": plain, "episodes": episodes, "figures": figures}


def in_our_order(case: dict[str, Any], trl: dict[str, Any], key: str) -> torch.Tensor:
    """TRL's advantages (N, T), T the longest answer, a row per prompt of the case: `values` before whitening, `result`
    after it; 0 outside of the answers."""
    mask, theirs = torch.tensor(trl["advantages"]["mask"]), torch.tensor(trl["advantages"][key])
    advantages = torch.zeros(mask.shape)
    advantages[torch.tensor(trl["order"])] = theirs.where(mask, 0)
    return advantages[:, : max(len(cut(answer)) for answer in case["answers"])]


def compare(case: dict[str, Any], trl: dict[str, Any]) -> dict[str, float]:
    """The largest differences between ours and TRL's first iteration: advantages, losses, KL, score.

    TRL whitens with the unbiased variance, so its whitened advantages are handed to our update.
    """
    whitened = in_our_order(case, trl, "result")
    epochs = []
    for number in range(case["settings"]["num_ppo_epochs"]):
        epochs.append(Ours(case, number + 1).iteration(whitened))
    first = epochs[0]
    metrics, episodes = trl["metrics"], first["episodes"]

    def mean_of(name: str) -> float:
        return sum(epoch["figures"][name] for epoch in epochs) / len(epochs)

    return {
        "advantages": float((first["advantages"] - in_our_order(case, trl, "values")).abs().max()),
        "policy loss": abs(mean_of("policy_loss") - metrics["loss/policy_avg"]),
        "value loss": abs(mean_of("value_loss") - metrics["loss/value_avg"]),
        "score": abs(float(episodes.scores.mean()) - metrics["objective/scores"]),
        "kl": abs(float(episodes.kl.sum(1).mean()) - metrics["objective/kl"]),
        "clip share": abs(mean_of("clip_share") - metrics["policy/clipfrac_avg"]),
    }


def weights_after(case: dict[str, Any], trl: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Sums of |w| per tensor after the first iteration: ours, TRL's. For cases of one iteration."""
    ours = Ours(case, case["settings"]["num_ppo_epochs"])
    ours.iteration(in_our_order(case, trl, "result"))
    return sizes(ours.models.policy), trl["policy"]


def seconds(case: dict[str, Any], what: str) -> float:
    """CPU seconds of the better warm iteration, with what is `SHARED`."""
    critic, lora = SHARED[what]
    ours, taken = Ours(case, case["settings"]["num_ppo_epochs"], critic, lora), []
    for number in range(case["iterations"]):
        start = time.process_time()
        ours.iteration(number=number + 1)
        taken.append(time.process_time() - start - ours.injection)
    return min(taken[1:])


def trl_of(python: str, case: dict[str, Any]) -> dict[str, Any]:
    """What `trl_ppo.py` finds for the case, in the environment of `python`."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "case.json", Path(folder) / "found.json"
        given.write_text(json.dumps(case))
        quiet = {
            "OMP_NUM_THREADS": "1",
            "TRL_EXPERIMENTAL_SILENCE": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": "",
        }
        command = [python, str(Path(__file__).with_name("trl_ppo.py")), str(given), str(found)]
        subprocess.run(command, check=True, env={**os.environ, **quiet}, capture_output=True)
        return json.loads(found.read_text())


def main(python: str, rounds: int = 3) -> None:
    torch.set_num_threads(1)
    case = demo_case()
    trl = trl_of(python, case)
    for what, difference in compare(case, trl).items():
        print(f"{what:12}  differs by at most {difference:.1e}")
        assert difference < 1e-4, what
    theirs = f"TRL {trl['trl']} PPOTrainer"
    taken: dict[str, list[float]] = {what: [] for what in (theirs, *SHARED)}
    for number in range(rounds):  # in turns, so that other work on the machine slows all of them
        taken[theirs].append(min(trl_of(python, case)["cpu_seconds"][1:]))
        for what in SHARED:
            taken[what].append(seconds(case, what))
        found = ", ".join(f"{of_one[-1]:.2f}" for of_one in taken.values())
        print(f"round {number + 1} of {rounds}: {found}", flush=True)
    print(f"CPU s per iteration of {len(case['prompts'])} episodes, the least of all rounds")
    for what, of_one in taken.items():
        print(f"{what:34} {min(of_one):6.2f}   {min(of_one) / min(taken[theirs]):.2f} of TRL's")


if __name__ == "__main__":
    main(sys.argv[1])
