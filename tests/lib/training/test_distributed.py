"""Two processes (gloo) train as one: the same answers, the same weights, one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from forked import in_processes
from sections import ppo_config
from tiny_models import instruction, tiny_llama, tiny_tokenizer

from tasks.lib.models.chat import prompt_ids
from tasks.lib.rl.actor_critic import ActorCritic
from tasks.lib.rl.batch import Batch, Prompt
from tasks.lib.rl.environment import Environment
from tasks.lib.rl.ppo_training import train
from tasks.lib.stage import Stage
from tasks.lib.training import distributed
from tasks.lib.training.checkpoints import Checkpoint

CONFIG: dict[str, Any] = {
    "iterations": 2, "episodes": 14, "batch_size": 4, "minibatches": 2, "max_new_tokens": 5,
    "missing_eos": "keep", "learning_rate": 1e-2, "evaluate_every": 1, "kl_budget": 100.0,
    "patience": 4, "max_content_loss": None,
}  # fmt: skip


def joined(rank: int, work: Any, *arguments: Any) -> None:
    """`work(*arguments)` in one of two processes that know each other."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore("store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    work(*arguments)
    torch.distributed.destroy_process_group()


def trained(folder: str, settings: dict[str, Any], shared_body: bool) -> None:
    """Train a tiny policy and write, per process, what it has in the end."""
    tokenizer = tiny_tokenizer()
    prompts = [Prompt(str(n), prompt_ids(tokenizer, instruction(n)["messages"])) for n in range(20)]

    def reward(batch: Batch) -> list[float]:
        return [answer[0] / 100 - len(answer) for answer in batch.answers]

    env = Environment(
        prompts=prompts, validation=prompts[:6], reward=reward,
        judge=lambda batch: {"judge": sum(map(sum, batch.answers)) / 1000},
        eos_id=tokenizer.eos_token_id, pad_id=tokenizer.pad_token_id, seed_of=Stage("ppo").seed_of,
    )  # fmt: skip
    critic = None
    if not shared_body:
        from tasks.lib.reward.reward_model import from_policy

        critic = from_policy(tiny_llama(tokenizer), seed=0)
    models = ActorCritic(tiny_llama(tokenizer), critic, {"r": 2, "lora_alpha": 4} if shared_body else None)
    run = train(models, env, ppo_config(**CONFIG, **settings), Checkpoint(Path(folder, "checkpoint"), {}))
    state = {"policy": models.policy_parameters(), "critic": models.critic_parameters(), "log": run.log}
    torch.save(state, Path(folder, f"rank{distributed.rank()}.pt"))


@torch.no_grad()
def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize(("streams", "shared_body"), [("per_pass", True), ("one", False)])
def test_ppo_in_two_processes_ends_in_the_weights_of_one(workspace: Path, streams: str, shared_body: bool) -> None:
    Path("one").mkdir()
    Path("two").mkdir()
    trained("one", {"streams": streams}, shared_body)
    in_processes(2, joined, trained, "two", {"streams": streams}, shared_body)
    one, first, second = (torch.load(f, weights_only=False) for f in ("one/rank0.pt", "two/rank0.pt", "two/rank1.pt"))
    for part in ("policy", "critic"):
        assert difference(one[part], first[part]) < 1e-5
        assert difference(first[part], second[part]) == 0
    for alone, together in zip(one["log"], first["log"], strict=True):
        assert together == pytest.approx(alone, rel=1e-4, abs=1e-5)
    assert second["log"] == first["log"]
    assert any(row.get("kl", 0) > 1e-3 for row in one["log"])  # it did learn something


def test_a_stream_per_pass_gives_other_answers_than_one_stream_and_the_same_again(workspace: Path) -> None:
    for folder, streams in (("a", "one"), ("b", "per_pass"), ("c", "per_pass")):
        Path(folder).mkdir()
        trained(folder, {"streams": streams}, True)
    a, b, c = (torch.load(f"{folder}/rank0.pt", weights_only=False) for folder in "abc")
    assert b["log"] == c["log"] != a["log"]


def shares(folder: str) -> None:
    batches = [[2, 0], [3], [1, 4]]
    done: list[list[int]] = []

    def ten_times(rows: list[int]) -> list[int]:
        done.append(rows)
        return [10 * row for row in rows]

    results = distributed.spread(batches, ten_times)
    figures = distributed.combined(
        {"sum": distributed.rank() + 1.0, "most": float(distributed.rank())}, largest=["most"]
    )
    weight = torch.nn.Parameter(torch.zeros(2))
    if distributed.is_first():
        weight.sum().backward()
    distributed.add_gradients([weight])
    assert weight.grad is not None
    text = f"{results} {done} {figures} {weight.grad.tolist()} {distributed.by_first(distributed.rank)}"
    Path(folder, str(distributed.rank())).write_text(text)


def test_batches_are_dealt_out_and_everybody_gets_every_result(workspace: Path) -> None:
    in_processes(2, joined, shares, ".")
    tail = "{'sum': 3.0, 'most': 1.0} [1.0, 1.0] 0"
    assert Path("0").read_text() == f"[0, 10, 20, 30, 40] [[2, 0], [1, 4]] {tail}"
    assert Path("1").read_text() == f"[0, 10, 20, 30, 40] [[3]] {tail}"
