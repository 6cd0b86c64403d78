"""One epoch of reward training on rankings of nine answers, against TRL's RewardTrainer on the same pairs.

Checks first that both compute the same loss on one batch, then trains both from the same weights with the same
optimiser, learning rate, steps and pairs per step, and compares CPU seconds and held-out accuracy. TRL's
imports, tokenization and set-up are not counted. Three cases: every answer with its prompt before it; the prompt
passed once for its answers, as params.yaml has it; the same where prompts are three times as long as answers.

Run     python -m benchmarks.reward_training            (one core: about four minutes)
"""

from __future__ import annotations

import copy
import random
import tempfile
import time
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tasks.lib.evaluation.intervals import mean_interval
from tasks.lib.reward.groups import Group
from tasks.lib.reward.ranking_loss import ranking_loss
from tasks.lib.reward.reward_model import from_policy, rewards
from tasks.lib.reward.reward_training import train
from tasks.lib.settings.reward import Training
from tasks.lib.stage import read_yaml
from tasks.lib.training.checkpoints import Checkpoint

PARAMS = Path(__file__).resolve().parents[1] / "params.yaml"
K, TRAIN, HELDOUT, PER_STEP, RATE = 9, 192, 64, 2, 1e-3  # PER_STEP: prompts, or all their pairs
VOCABULARY, PAD, END, LIKED = 512, 0, 1, range(2, 34)  # the more liked tokens in an answer, the better
ANSWER, NOISE = 16, 2.0  # tokens of an answer; how far an annotator is off, in liked tokens


def world(prompt_tokens: int, prompts: int, seed: int, noise: float = 0.0) -> list[Group]:
    """Prompts of random tokens with K answers, ranked by their number of liked tokens, seen with noise."""
    draw, groups = random.Random(seed), []
    for number in range(prompts):
        start = [draw.randrange(34, VOCABULARY) for _ in range(prompt_tokens)]
        counts = draw.sample(range(ANSWER), K)
        answers = []
        for count in counts:
            answer = [draw.choice(LIKED) for _ in range(count)]
            answer += [draw.randrange(34, VOCABULARY) for _ in range(ANSWER - 1 - count)]
            draw.shuffle(answer)
            answers.append([*start, *answer, END])
        seen = [count + draw.gauss(0, noise) for count in counts]
        best_first = sorted(seen, reverse=True)
        ranks = [[best_first.index(count) for count in seen]]
        names = [str(count) for count in counts]
        groups.append(Group(str(number), [], names, ranks, [str(number)], sequences=answers))
    return groups


def pairs_of(groups: list[Group]) -> list[dict[str, list[int]]]:
    """Every pair of every ranking, as TRL takes it."""
    pairs = []
    for group in groups:
        best_first = sorted(zip(group.ranks[0], group.sequences, strict=True))
        for (_, better), (_, worse) in combinations(best_first, 2):
            pairs.append({"chosen_ids": better, "rejected_ids": worse})
    return pairs


@torch.no_grad()
def pair_shares(model: Any, groups: list[Group]) -> list[float]:
    """Per prompt the share of its pairs that are ordered right."""
    shares = []
    for group in groups:
        scores = rewards(model, group.sequences).tolist()
        best_first = [score for _, score in sorted(zip(group.ranks[0], scores, strict=True))]
        hits = [better > worse for better, worse in combinations(best_first, 2)]
        shares.append(sum(hits) / len(hits))
    return shares


def tokenizer() -> PreTrainedTokenizerFast:
    names = {f"t{number}": number for number in range(VOCABULARY)}
    word_level = Tokenizer(models.WordLevel(names, unk_token="t2"))
    return PreTrainedTokenizerFast(tokenizer_object=word_level, pad_token="t0", eos_token="t1")


def ours(model: Any, groups: list[Group], share_prompt: bool) -> float:
    """CPU seconds of one epoch."""
    settings = read_yaml(PARAMS)["reward"]["training"]
    settings |= dict(
        epochs=1,
        prompts_per_step=PER_STEP,
        learning_rate=RATE,
        ties="drop",
        centring=0.0,
        share_prompt=share_prompt,
        checkpoint_every=10**6,
    )
    how = Training(**settings)
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        train(model, groups, how, seed=1, checkpoint=Checkpoint(Path(folder), {}), progress=_quiet)
        return time.process_time() - start


def _quiet(step: int, total: int, **figures: float) -> None:
    pass


def trainer(model: Any, groups: list[Group], folder: str) -> trl.RewardTrainer:
    """TRL's trainer with the same number of pairs per step, optimiser and schedule."""
    steps = TRAIN // PER_STEP
    settings = trl.RewardConfig(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=PER_STEP * K * (K - 1) // 2,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=round(0.05 * steps),
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=None,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    data = Dataset.from_list(pairs_of(groups))
    return trl.RewardTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer())


def same_loss(model: Any, groups: list[Group]) -> None:
    """Both losses of one batch, all pairs of some prompts, or an AssertionError."""
    batch = groups[:PER_STEP]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        theirs = trainer(model, batch, folder)
        inputs = theirs.data_collator(pairs_of(batch))
        loss = theirs.compute_loss(model.train(), inputs).item()
    scores = torch.stack([rewards(model, group.sequences) for group in batch])
    mine = ranking_loss(scores, torch.tensor([group.ranks[0] for group in batch])).item()
    assert abs(mine - loss) < 1e-5, f"losses differ on one batch: {mine} and {loss}"
    print(f"  loss of one batch    {mine:.6f} here, {loss:.6f} in TRL")


def compare(prompt_tokens: int, share_prompt: bool) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        pad_token_id=PAD,
        eos_token_id=END,
    )
    start = from_policy(LlamaForCausalLM(config), seed=1)
    groups, heldout = world(prompt_tokens, TRAIN, 1, noise=NOISE), world(prompt_tokens, HELDOUT, 2)
    shared = ", prompt shared" if share_prompt else ""
    print(f"{TRAIN} prompts of {prompt_tokens} tokens, {K} answers of {ANSWER}{shared}")
    same_loss(copy.deepcopy(start), groups)
    mine, theirs = copy.deepcopy(start), copy.deepcopy(start)
    again = copy.deepcopy(start)
    seconds = ours(mine, groups, share_prompt)
    with tempfile.TemporaryDirectory() as folder:
        other = trainer(theirs, groups, folder)
        begun = time.process_time()
        other.train()
        their_seconds = time.process_time() - begun
    seconds = (seconds + ours(again, groups, share_prompt)) / 2  # other work on the machine costs both the same
    here, there = pair_shares(mine, heldout), pair_shares(theirs, heldout)
    gain = mean_interval([a - b for a, b in zip(here, there, strict=True)], seed=1)
    print(f"  held-out accuracy    {fmean(here):.4f} here, {fmean(there):.4f} in TRL")
    print(f"  difference           {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}], 95 % over prompts")
    print(f"  CPU seconds          {seconds:.1f} here, {their_seconds:.1f} in TRL {trl.__version__}")
    print(f"  ratio                1 : {their_seconds / seconds:.1f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    compare(prompt_tokens=ANSWER, share_prompt=False)
    compare(prompt_tokens=ANSWER, share_prompt=True)
    compare(prompt_tokens=3 * ANSWER, share_prompt=True)
