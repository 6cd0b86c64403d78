"""The critic's head fits the last hidden state, however wide that is."""

from __future__ import annotations

import torch
from transformers import OPTConfig, OPTForCausalLM

from tasks.lib.reward.reward_model import from_policy
from tasks.lib.rl.actor_critic import ActorCritic


def test_the_heads_fit_a_model_whose_last_state_is_narrower_than_its_layers() -> None:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=40, hidden_size=32, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, dropout=0.0, pad_token_id=0,
    )  # fmt: skip
    policy = OPTForCausalLM(config).eval()
    for reward_model in (None, from_policy(policy, seed=0)):
        logprobs, values = ActorCritic(policy, reward_model)([[3, 4], [5]], [[6, 7, 1], [8]], temperature=1.0)
        assert logprobs.shape == (2, 3) and values.shape == (2, 4)
