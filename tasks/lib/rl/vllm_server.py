"""Answers drawn by a vLLM server (docs.vllm.ai): the policy's weights go there, token ids come back.

The server runs in an environment of its own, on this machine. Its kernels round otherwise than ours, so what it says of
an answer's probability is only compared with the policy; what is learned from is computed by the policy itself.
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
from tasks.lib.rl.ppo import SAME, Answers
from tasks.lib.settings.ppo import PPOConfig
from tasks.lib.stage import Problem

AT_ONCE = 128  # requests under way; the server makes its own batches of them
PATIENCE = 600  # seconds for one request, waiting for its turn included
COMPARED = 16  # answers of a roll-out whose log-probs are compared
TOLERANCE = 0.1  # nats per token at the start; usual are 1e-6 where both sides are float32, 1e-2 with 16 bits
GROWTH = 5  # times what it was at the start, or SAME, may it be later: with more, new weights did not arrive
PLAIN = {  # the bare softmax: what is not said the server takes from the model's generation_config
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "ignore_eos": True,
}  # fmt: skip
WITH_ADAPTERS = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve models/sft --enable-lora --max-lora-rank R"
WITHOUT = "VLLM_SERVER_DEV_MODE=1 vllm serve models/sft"

Drawn = tuple[list[int], list[float]]  # the tokens of an answer, and the server's log-probs at temperature 1


class VllmServer:
    """The server at `url`. `gap`: the largest mean |log-prob here - there| of a roll-out so far, in nats per token."""

    def __init__(self, url: str, config: PPOConfig, eos_id: int, folder: Path) -> None:
        """Weights are put into `folder` for the server to read. Problem when it is elsewhere or does not answer."""
        self.url, self.config, self.eos_id, self.folder = url.rstrip("/"), config, eos_id, folder.absolute()
        if urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1"):
            raise Problem(
                f"params.yaml: ppo.vllm: {url} is not on this machine, and what loads weights there asks for no "
                "password; reach another machine through a tunnel: ssh -L 8000:127.0.0.1:8000 HOST"
            )
        self.sent, self.gap = "", 0.0
        self.first: float | None = None  # gap of the first roll-out
        self.served = self._models()[0]

    def answers(self, models: ActorCritic, prompts: Answers, seed: int) -> Answers:
        """One sampled answer per prompt, cut after its first EOS, by the weights that `models` has now.

        Every prompt is a request with a seed of its own: the prompts of one request would share their random numbers.
        Problem when the server fails, or when its log-probs are not the policy's: other weights, another model.
        """
        name = self._send(models)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            drawn = list(pool.map(lambda i: self._answer(name, prompts[i], seed + i), range(len(prompts))))
        self._compare(models, prompts[:COMPARED], drawn[:COMPARED])
        return [tokens for tokens, _ in drawn]

    def _send(self, models: ActorCritic) -> str:
        """Let the server have the policy's weights, unless it has; the name under which it answers by them."""
        digest = hashlib.sha256()
        for name, parameter in sorted(models.policy_parameters().items()):
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        last, self.sent = self.sent, f"anneal-{digest.hexdigest()[:16]}"
        new = self.folder / self.sent
        if models.adapter is None:
            if self.sent != last:
                with replaced_folder(new) as folder:
                    models.policy.save_pretrained(folder)
                call = {"method": "reload_weights", "kwargs": {"weights_path": str(new)}}
                self._asked("/collective_rpc", call, f"start it with {WITHOUT}")
        elif self.sent not in (known := self._models()):
            with replaced_folder(new) as folder:
                models.adapter.save_pretrained(folder, save_embedding_layers=False)
            call = {"lora_name": self.sent, "lora_path": str(new)}
            self._asked("/v1/load_lora_adapter", call, f"start it with {WITH_ADAPTERS}")
            if last in known:
                self._asked("/v1/unload_lora_adapter", {"lora_name": last})
        if last not in ("", self.sent):
            shutil.rmtree(self.folder / last, ignore_errors=True)
        return self.served if models.adapter is None else self.sent

    def _answer(self, name: str, prompt: list[int], seed: int) -> Drawn:
        found = self._asked(
            "/v1/completions",
            PLAIN
            | {
                "model": name,
                "prompt": prompt,
                "max_tokens": self.config.max_new_tokens,
                "temperature": self.config.temperature,
                "seed": seed,
                "stop_token_ids": [self.eos_id],
                "logprobs": 0,
                "return_token_ids": True,
                "cache_salt": self.sent,  # keys and values that other weights left are not taken
            },
        )
        try:
            choice = found["choices"][0]
            tokens, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            if len(tokens) != len(logprobs) or not all(isinstance(token, int) for token in tokens):
                raise TypeError
        except (LookupError, TypeError):
            raise self._problem("answers without token_ids and their log-probs; vLLM has them from 0.11") from None
        return tokens, logprobs

    def _compare(self, models: ActorCritic, prompts: Answers, drawn: list[Drawn]) -> None:
        """Problem unless the server's log-probs of these answers are the policy's."""
        answers = [tokens for tokens, _ in drawn]
        size = models.policy.get_input_embeddings().weight.shape[0]
        if any(not answer or not all(0 <= token < size for token in answer) for answer in answers):
            raise self._problem(f"answers with none of the policy's {size} tokens; it serves another model")
        ours = answer_logprobs(models.policy, prompts, answers, batch_size=self.config.batch_size)
        gaps = [(torch.tensor(theirs) - own).abs() for (_, theirs), own in zip(drawn, ours, strict=True)]
        gap = torch.cat(gaps).mean().item()
        limit = TOLERANCE if self.first is None else min(TOLERANCE, max(SAME, GROWTH * self.first))
        if not gap <= limit:
            raise self._problem(
                f"its log-probs differ from the policy's by {gap:.2g} nats per token, more than {limit:.2g}: it does "
                "not have the policy's weights; start it again as docs/ppo.md says, without a --logprobs-mode"
            )
        self.first, self.gap = gap if self.first is None else self.first, max(self.gap, gap)

    def _models(self) -> list[str]:
        """The names that the server answers by: its model's first, then its adapters'."""
        try:
            first, *adapters = [str(each["id"]) for each in self._asked("/v1/models")["data"]]
            return [first, *adapters]
        except (LookupError, TypeError, ValueError):
            raise self._problem("/v1/models names no model; is this a vLLM server?") from None

    def _asked(self, path: str, body: Mapping[str, Any] | None = None, advice: str = "") -> Any:
        """The server's answer to GET, or to POST with a body: JSON or None."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # straight to loopback
        try:
            with opener.open(request, timeout=PATIENCE) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            said = " ".join(error.read().decode(errors="replace").split())[:300]
            raise self._problem(f"{path}: {error.code} {said}" + (f"; {advice}" if advice else "")) from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise self._problem(f"{reason}; start it as docs/ppo.md says, or set ppo.vllm to null") from None
        try:
            return json.loads(content)
        except ValueError:
            return None

    def _problem(self, what: str) -> Problem:
        return Problem(f"ppo: the vLLM server {self.url}: {what}")
