"""Answers drawn by a vLLM server (docs.vllm.ai): the policy's weights go there, token ids come back.

The server runs in an environment of its own, on this machine. Its kernels round otherwise than ours, so its
log-probabilities are only compared with the policy's: PPO learns from those that the policy itself computes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from tasks.lib.models.logprobs import answer_logprobs
from tasks.lib.models.model_folder import replaced_folder
from tasks.lib.rl.actor_critic import ActorCritic
from tasks.lib.rl.batch import TokenIds
from tasks.lib.rl.sanity_checks import SAME
from tasks.lib.settings.ppo import PPOConfig
from tasks.lib.stage import Problem

CONCURRENT = 128  # requests under way; the server makes its own batches of them
TIMEOUT = 600  # seconds for one request, waiting for its turn included
COMPARED = 16  # answers of a rollout whose log-probs are compared
TOLERANCE = 0.1  # nats per token at the start; usual are 1e-6 where both sides are float32, 1e-2 with 16 bits
GROWTH = 5  # later this many times what it was at the start, or SAME; with more, new weights did not arrive
PLAIN = {  # the bare softmax: what a request leaves out the server takes from the model's generation_config
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "ignore_eos": True,
}  # fmt: skip
WITH_ADAPTERS = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve models/sft --enable-lora --max-lora-rank R"
WITHOUT = "VLLM_SERVER_DEV_MODE=1 vllm serve models/sft"

Drawn = tuple[list[int], list[float]]  # the tokens of an answer, and the server's log-probs at temperature 1


class VllmServer:
    """The server at `url`. `gap`: the largest mean |log-prob here - there| of a rollout so far, in nats per token.

    It answers for the first process alone (`roll_out`), so nothing here waits for other processes.
    """

    def __init__(self, url: str, config: PPOConfig, eos_id: int, folder: Path) -> None:
        """Weights are put into `folder` for the server to read. Problem when it is elsewhere or does not answer."""
        self.url, self.config, self.eos_id, self.folder = url.rstrip("/"), config, eos_id, folder.absolute()
        if urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1"):
            raise Problem(
                f"params.yaml: ppo.vllm: {url} is not on this machine, and what loads weights there asks for no "
                "password; reach another machine through a tunnel: ssh -L 8000:127.0.0.1:8000 HOST"
            )
        self.sent = ""  # the name under which the server has the latest weights
        self.gap = 0.0
        self.first_gap: float | None = None  # of the first rollout
        self.served = self._models()[0]

    def answers(self, models: ActorCritic, prompts: TokenIds, seed: int) -> TokenIds:
        """One sampled answer per prompt, cut after its first EOS, by the weights that `models` has now.

        Every prompt is a request with a seed of its own: the prompts of one request would share their random numbers.
        Problem when the server fails, or when its log-probs are not the policy's: other weights, another model.
        """
        name = self._send(models)
        seeds = range(seed, seed + len(prompts))
        with ThreadPoolExecutor(CONCURRENT) as pool:
            drawn = list(pool.map(lambda prompt, seed: self._answer(name, prompt, seed), prompts, seeds))
        self._compare(models, prompts[:COMPARED], drawn[:COMPARED])
        return [tokens for tokens, _ in drawn]

    def _send(self, models: ActorCritic) -> str:
        """Send the policy's weights unless the server has them. Returns the name under which it answers by them."""
        last, self.sent = self.sent, _name_of_weights(models)
        if models.adapter is None:
            if self.sent != last:
                self._send_weights(models.policy)
        else:
            served = self._models()
            if self.sent not in served:
                self._send_adapter(models.adapter)
                if last in served:
                    self._request("/v1/unload_lora_adapter", {"lora_name": last})
        if last not in ("", self.sent):
            shutil.rmtree(self.folder / last, ignore_errors=True)
        return self.served if models.adapter is None else self.sent

    def _send_weights(self, policy: Any) -> None:
        new = self.folder / self.sent
        with replaced_folder(new) as folder:
            policy.save_pretrained(folder)
        call = {"method": "reload_weights", "kwargs": {"weights_path": str(new)}}
        self._request("/collective_rpc", call, f"start it with {WITHOUT}")

    def _send_adapter(self, adapter: Any) -> None:
        new = self.folder / self.sent
        with replaced_folder(new) as folder:
            adapter.save_pretrained(folder, save_embedding_layers=False)
        call = {"lora_name": self.sent, "lora_path": str(new)}
        self._request("/v1/load_lora_adapter", call, f"start it with {WITH_ADAPTERS}")

    def _answer(self, name: str, prompt: list[int], seed: int) -> Drawn:
        settings = {
            "model": name,
            "prompt": prompt,
            "max_tokens": self.config.max_new_tokens,
            "temperature": self.config.temperature,
            "seed": seed,
            "stop_token_ids": [self.eos_id],
            "logprobs": 0,
            "return_token_ids": True,
            "cache_salt": self.sent,  # keys and values that other weights left are not taken
        }
        response = self._request("/v1/completions", PLAIN | settings)
        try:
            choice = response["choices"][0]
            tokens, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            if len(tokens) != len(logprobs) or not all(isinstance(token, int) for token in tokens):
                raise TypeError
        except (LookupError, TypeError):
            raise self._problem("it answers without token_ids and their log-probs; use vLLM 0.11 or newer") from None
        return tokens, logprobs

    def _compare(self, models: ActorCritic, prompts: TokenIds, drawn: list[Drawn]) -> None:
        """Problem unless the server's log-probs of these answers are the policy's."""
        answers = [tokens for tokens, _ in drawn]
        size = models.policy.get_input_embeddings().weight.shape[0]
        for answer in answers:
            if not answer or min(answer) < 0 or max(answer) >= size:
                raise self._problem(f"an answer has none of the policy's {size} tokens; it serves another model")
        own_logprobs = answer_logprobs(models.policy, prompts, answers, batch_size=self.config.batch_size)
        gaps = []  # nats, a tensor (tokens,) per answer
        for (_, server_logprobs), own in zip(drawn, own_logprobs, strict=True):
            gaps.append((torch.tensor(server_logprobs) - own).abs())
        gap = torch.cat(gaps).mean().item()
        limit = TOLERANCE
        if self.first_gap is not None:
            limit = min(TOLERANCE, max(SAME, GROWTH * self.first_gap))
        if not gap <= limit:
            raise self._problem(
                f"its log-probs differ from the policy's by {gap:.2g} nats per token, more than {limit:.2g}: it does "
                "not have the policy's weights; start it again as docs/ppo.md says, without a --logprobs-mode"
            )
        if self.first_gap is None:
            self.first_gap = gap
        self.gap = max(self.gap, gap)

    def _models(self) -> list[str]:
        """The names that the server answers by: its model's first, then its adapters'."""
        try:
            first, *adapters = [str(model["id"]) for model in self._request("/v1/models")["data"]]
            return [first, *adapters]
        except (LookupError, TypeError, ValueError):
            raise self._problem("/v1/models names no model; is this a vLLM server?") from None

    def _request(self, path: str, body: Mapping[str, Any] | None = None, advice: str = "") -> Any:
        """The server's answer to GET, or to POST with a body: JSON or None."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # straight to loopback
        try:
            with opener.open(request, timeout=TIMEOUT) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            message = " ".join(error.read().decode(errors="replace").split())[:300]
            if advice:
                message = f"{message}; {advice}"
            raise self._problem(f"{path}: {error.code} {message}") from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise self._problem(f"{reason}; start it as docs/ppo.md says, or set ppo.vllm to null") from None
        try:
            return json.loads(content)
        except ValueError:
            return None

    def _problem(self, what: str) -> Problem:
        return Problem(f"ppo: the vLLM server {self.url}: {what}")


def _name_of_weights(models: ActorCritic) -> str:
    """A name for the policy's weights of now, made from their bytes."""
    digest = hashlib.sha256()
    for name, parameter in sorted(models.policy_parameters().items()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"anneal-{digest.hexdigest()[:16]}"
