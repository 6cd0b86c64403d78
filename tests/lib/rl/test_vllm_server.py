"""Answers of a vLLM server follow the policy's weights, seed by seed; a Problem is one line.

The server here speaks the protocol of vLLM 0.32 and answers by transformers and peft.
"""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import pytest
import torch
from sections import ppo_config
from tiny_models import tiny_llama, tiny_tokenizer

from tasks.lib.models.generation import sampled
from tasks.lib.models.logprobs import answer_logprobs
from tasks.lib.rl import ppo_training
from tasks.lib.rl.actor_critic import ActorCritic
from tasks.lib.rl.batch import Batch, Prompt
from tasks.lib.rl.environment import Environment
from tasks.lib.rl.vllm_server import PLAIN, VllmServer
from tasks.lib.stage import Problem
from tasks.lib.training.checkpoints import Checkpoint

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id
PROMPTS = [TOKENIZER.encode(f"Say the word {word}") for word in ("red", "blue", "green and old")]


class Engine:
    """In place of vLLM: a base model, adapters by name, and what it was asked."""

    def __init__(self, model: Any) -> None:
        self.lock, self.base, self.url = Lock(), model, ""
        self.adapters: dict[str, Any] = {}
        self.asked: list[tuple[str, Any]] = []
        self.names_tokens = True
        self.refuses: tuple[str, ...] = ()

    def answer(self, path: str, body: Any) -> Any:
        self.asked.append((path, body))
        if path in self.refuses:
            raise KeyError(path)
        if path == "/v1/models":
            return {"data": [{"id": name} for name in ("models/sft", *self.adapters)]}
        if path == "/v1/load_lora_adapter":
            from peft import PeftModel

            self.adapters[body["lora_name"]] = PeftModel.from_pretrained(
                copy.deepcopy(self.base), body["lora_path"]
            ).eval()
        elif path == "/v1/unload_lora_adapter":
            del self.adapters[body["lora_name"]]
        elif path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            self.base = type(self.base).from_pretrained(body["kwargs"]["weights_path"]).eval()
        else:
            return self.completion(body)

    def completion(self, body: Any) -> Any:
        model = self.base if body["model"] == "models/sft" else self.adapters[body["model"]]
        answer = sampled(
            model, [body["prompt"]], eos_id=body["stop_token_ids"][0], pad_id=0, batch_size=1, seed=body["seed"],
            max_new_tokens=body["max_tokens"], temperature=body["temperature"],
        )[0]  # fmt: skip
        choice: dict[str, Any] = {"text": "", "logprobs": None}
        if self.names_tokens:
            logprobs = answer_logprobs(model, [body["prompt"]], answer, batch_size=1)[0].tolist()
            choice |= {"token_ids": answer[0], "logprobs": {"token_logprobs": logprobs}}
        return {"choices": [choice]}


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(llama())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
            with engine.lock:
                try:
                    status, content = 200, engine.answer(self.path, body)
                except KeyError:
                    status, content = 404, {"detail": "Not Found"}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        engine.url = f"http://127.0.0.1:{server.server_port}"
        yield engine
        server.shutdown()


def llama(seed: int = 0) -> Any:
    """Tiny, with probabilities that are far from equal."""
    model = tiny_llama(TOKENIZER, seed)
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    return model


def models(lora: bool, seed: int = 0) -> ActorCritic:
    return ActorCritic(llama(seed), lora={"r": 2, "lora_alpha": 4} if lora else None)


def connected(engine: Engine, folder: Path, **changes: Any) -> VllmServer:
    config = ppo_config(max_new_tokens=6, temperature=0.8, patience=4, max_content_loss=None, **changes)
    return VllmServer(engine.url, config, EOS, folder)


def moved(actor_critic: ActorCritic, by: float = 0.1) -> None:
    with torch.no_grad():
        for parameter in actor_critic.policy_parameters().values():
            parameter.add_(by * torch.randn_like(parameter))


def drawn(actor_critic: ActorCritic, prompts: list[list[int]], seed: int) -> list[list[int]]:
    """What the policy itself answers with these seeds."""
    settings: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0.8, "batch_size": 1}
    return [
        sampled(actor_critic.policy, [prompt], eos_id=EOS, pad_id=0, seed=seed + i, **settings)[0][0]
        for i, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("lora", [True, False])
def test_answers_come_from_the_weights_of_now_with_a_seed_for_each_prompt(
    engine: Engine, tmp_path: Path, lora: bool
) -> None:
    actor_critic, server = models(lora), connected(engine, tmp_path)
    before = server.answers(actor_critic, PROMPTS, seed=7)
    assert before == drawn(actor_critic, PROMPTS, 7)
    moved(actor_critic)
    assert server.answers(actor_critic, PROMPTS, seed=7) == drawn(actor_critic, PROMPTS, 7) != before
    assert server.gap < 1e-5
    assert len(list(tmp_path.iterdir())) == 1  # the folder of earlier weights is gone
    assert len(engine.adapters) == lora


@pytest.mark.parametrize("lora", [True, False])
def test_equal_weights_are_sent_once_and_keys_of_others_are_not_reused(
    engine: Engine, tmp_path: Path, lora: bool
) -> None:
    actor_critic, server = models(lora), connected(engine, tmp_path)
    for seed in (1, 2):
        server.answers(actor_critic, PROMPTS, seed)
    moved(actor_critic)
    server.answers(actor_critic, PROMPTS, 3)
    paths = [path for path, _ in engine.asked]
    assert paths.count("/v1/load_lora_adapter" if lora else "/collective_rpc") == 2
    salts = [body["cache_salt"] for path, body in engine.asked if path == "/v1/completions"]
    assert salts[0] == salts[5] != salts[6]


def test_a_server_that_was_started_again_gets_the_adapter_again(engine: Engine, tmp_path: Path) -> None:
    actor_critic, server = models(lora=True), connected(engine, tmp_path)
    before = server.answers(actor_critic, PROMPTS, 1)
    engine.adapters.clear()
    assert server.answers(actor_critic, PROMPTS, 1) == before


def test_nothing_is_left_to_the_sampling_defaults_of_the_model_folder(engine: Engine, tmp_path: Path) -> None:
    connected(engine, tmp_path).answers(models(lora=True), PROMPTS, 1)
    asked = [body for path, body in engine.asked if path == "/v1/completions"]
    assert all(PLAIN.items() <= body.items() for body in asked)
    assert {(body["temperature"], body["max_tokens"]) for body in asked} == {(0.8, 6)}
    assert sorted(body["seed"] for body in asked) == [1, 2, 3]


@pytest.mark.parametrize("lora", [True, False])
def test_a_run_through_the_server_is_the_run_on_the_policys_own_answers(
    engine: Engine, tmp_path: Path, lora: bool
) -> None:
    settings: dict[str, Any] = {"iterations": 3, "episodes": 8, "evaluate_every": 1, "missing_eos": "keep"}
    server = connected(engine, tmp_path / "vllm", learning_rate=1e-2, kl_budget=1e3, **settings)
    prompts = [Prompt(str(i), tokens) for i, tokens in enumerate(PROMPTS)]

    def odd_tokens(batch: Batch) -> list[float]:
        counts = []
        for answer in batch.answers:
            counts.append(float(sum(token % 2 for token in answer)))
        return counts

    def logged(generate: Any) -> list[dict[str, float]]:
        env = Environment(
            prompts=prompts, validation=prompts, judge=lambda batch: {"judge": sum(map(sum, batch.answers))},
            reward=odd_tokens,
            eos_id=EOS, pad_id=0, seed_of=lambda *words: zlib.crc32(repr(words).encode()) >> 1,
            generate=generate,
        )  # fmt: skip
        checkpoint = Checkpoint(tmp_path / "none", {})
        result = ppo_training.train(models(lora), env, server.config, checkpoint)
        checkpoint.clear()
        return result.log

    for row, own in zip(logged(server.answers), logged(drawn), strict=True):
        assert row == pytest.approx(own, abs=1e-5)
    assert server.gap < 1e-5


def test_another_model_is_seen_by_its_log_probs(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"log-probs differ .* more than 0\.1: it does not have the policy's weights"):
        connected(engine, tmp_path).answers(models(lora=True, seed=1), PROMPTS, 1)


def test_new_weights_that_the_server_takes_but_does_not_use_are_seen(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor_critic, server = models(lora=False), connected(engine, tmp_path)
    server.answers(actor_critic, PROMPTS, 1)
    answer = engine.answer

    def deaf(path: str, body: Any) -> Any:
        return None if path == "/collective_rpc" else answer(path, body)

    monkeypatch.setattr(engine, "answer", deaf)
    moved(actor_critic, 0.005)
    with pytest.raises(Problem, match=r"differ .* by 0\.0\d+ nats per token, more than 0\.001: it does not have"):
        server.answers(actor_critic, PROMPTS, 1)


def test_what_is_wrong_with_a_server_is_one_line(engine: Engine, tmp_path: Path) -> None:
    server, actor_critic = connected(engine, tmp_path), models(lora=True)
    engine.refuses = ("/v1/load_lora_adapter",)
    with pytest.raises(Problem, match=r"404 .*VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve"):
        server.answers(actor_critic, PROMPTS, 1)
    engine.refuses = ("/collective_rpc",)
    with pytest.raises(Problem, match=r"404 .*VLLM_SERVER_DEV_MODE=1 vllm serve"):
        connected(engine, tmp_path).answers(models(lora=False), PROMPTS, 1)
    engine.refuses, engine.names_tokens = (), False
    with pytest.raises(Problem, match="answers without token_ids"):
        server.answers(actor_critic, PROMPTS, 1)


def test_a_server_that_is_down_elsewhere_or_another_is_refused_before_anything_runs(
    engine: Engine, tmp_path: Path
) -> None:
    with pytest.raises(Problem, match=r"127\.0\.0\.1:9: .*[Rr]efused; start it"):
        VllmServer("http://127.0.0.1:9", ppo_config(), EOS, tmp_path)
    with pytest.raises(Problem, match=r"not on this machine.*ssh -L"):
        VllmServer("http://10.0.0.5:8000", ppo_config(), EOS, tmp_path)
    engine.answer = lambda path, body: {"data": []}  # type: ignore[method-assign]
    with pytest.raises(Problem, match="names no model; is this a vLLM server"):
        connected(engine, tmp_path)
