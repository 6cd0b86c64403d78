"""probe: what the stages after `base` need of its model, tried out in seconds, and held against params.yaml.

What the parameters ask for and the model cannot do stops the run here, all of it at once, before anything is trained.

Reads   models/base; of params.yaml what dvc.yaml lists
Writes  reports/probe.json
Run     python -m tasks.probe
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tasks.lib.export.distillation import chosen_layers, untrained_student
from tasks.lib.export.gguf_file import refuse_unsupported
from tasks.lib.export.gguf_vocabulary import describe
from tasks.lib.finetuning.adapters import fields_of, prepare_model
from tasks.lib.finetuning.packing import packed, refuse_unless_apart
from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.loading import load_policy
from tasks.lib.models.model_folder import first_line
from tasks.lib.models.probing import LONG, probes
from tasks.lib.reward.reward_adapters import adapt
from tasks.lib.reward.reward_model import untrained
from tasks.lib.sections import read_sections
from tasks.lib.settings import distill, dpo, evaluate, ppo, quantize, release, reward, sample, sft
from tasks.lib.settings.probe import Params
from tasks.lib.stage import PARAMS_FILE, Problem, Stage, main, read_yaml

BASE = Path("models/base")
ALWAYS = {  # what every run needs, whatever its parameters
    "causal": "a later token changes the prediction of an earlier one",
    "left_padding": "padding on the left changes a row, and answers are generated so",
    "right_padding": "padding on the right changes a row, and rows are trained so",
    "cache": "its cache cannot be used to generate several answers",
    "reward_head": "the stage reward has no head for it",
}


@dataclass(frozen=True)
class Wishes:
    """The sections whose wishes a model may not be able to fulfil."""

    sft: sft.Params
    sample: sample.Params
    reward: reward.Params
    dpo: dpo.Params
    ppo: ppo.Params
    evaluate: evaluate.Params
    distill: distill.Params
    quantize: quantize.Params
    release: release.Params

    @property
    def longest_row(self) -> int:
        """Tokens of the longest row that is trained on, as far as it is limited."""
        return max(each.trainer.get("max_length") or 0 for each in (self.sft, self.dpo))


def run(params: Params, stage: Stage) -> None:
    # 1. What is asked for
    modules = (sft, sample, reward, dpo, ppo, evaluate, distill, quantize, release)
    wishes = Wishes(**read_sections(read_yaml(PARAMS_FILE), modules))
    model, tokenizer = load_policy(BASE), load_tokenizer(BASE)

    # 2. What the model can do
    reasons = probes(model, wishes.longest_row)
    reasons["packing"] = refusal(lambda: pack_two_rows(model))
    import peft  # noqa: F401, which imports a compiler: on the meta device that would take minutes

    with torch.device("meta"):  # what is made here has no weights
        reasons |= outlines(model, tokenizer, wishes)
    facts = facts_of(model)
    show(facts, reasons)

    # 3. Everything that does not fit, at once
    mistakes = unfulfilled(wishes, reasons, facts["positions"])
    if mistakes:
        raise Problem("\n".join(mistakes))
    able = {name: not reason for name, reason in reasons.items()}
    stage.report(facts | able | {"failed": len(able) - sum(able.values())})


def facts_of(model: Any) -> dict[str, Any]:
    """What there is to know besides what the model can do; `positions` is None where any length will do."""
    config = model.config
    return {
        "architecture": config.model_type,
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": config.num_hidden_layers,
        "positions": getattr(config, "max_position_embeddings", None),
        "tied_embeddings": bool(config.tie_word_embeddings),
    }


def outlines(model: Any, tokenizer: Any, wishes: Wishes) -> dict[str, str]:
    """What needs no weights, tried on models of the same shape: name -> why it cannot be; "" if it can."""

    def lora(where: str, given: Mapping[str, Any] | None) -> None:
        if given is not None:
            prepare_model("lora", fields_of(where, "lora", dict(given)), outline(model), tokenizer)

    def method() -> None:
        name = {"qlora": "lora"}.get(wishes.sft.method, wishes.sft.method)  # which differ in the base's precision
        fields = fields_of("sft.adapter", name, wishes.sft.adapter)
        prepare_model(name, fields, outline(model), copy.deepcopy(tokenizer))

    def rewards() -> None:
        adapt(untrained(copy.deepcopy(model.config)), wishes.reward.method, wishes.reward.lora)

    def student() -> None:
        untrained_student(model, chosen_layers(wishes.distill.layers, model.config.num_hidden_layers))

    return {
        "reward_head": refusal(lambda: untrained(copy.deepcopy(model.config))),
        "sft_method": refusal(method),
        "reward_method": refusal(rewards),
        "dpo_lora": refusal(lambda: lora("dpo.lora", wishes.dpo.lora)),
        "ppo_lora": refusal(lambda: lora("ppo.lora", wishes.ppo.lora)),
        "student": refusal(student),
        "gguf": refusal(lambda: refuse_unsupported(model.config)),
        "gguf_tokenizer": refusal(lambda: describe(tokenizer, model.config.vocab_size)),
    }


def outline(model: Any) -> Any:
    """A new model of the same shape."""
    return type(model)(copy.deepcopy(model.config))


def pack_two_rows(model: Any) -> None:
    """Problem when two samples in one row see each other."""
    ids = [*range(LONG)]
    rows = [{"id": str(start), "input_ids": ids[start:], "labels": ids[start:]} for start in range(2)]
    refuse_unless_apart(model, packed(rows, 2 * LONG)[0])


def refusal(attempt: Callable[[], object]) -> str:
    """Why an attempt fails, in a line; "" if it does not."""
    try:
        attempt()
    except Problem as problem:
        return str(problem)
    except Exception as error:  # of peft or transformers, for an architecture that they do not know
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


def unfulfilled(wishes: Wishes, reasons: Mapping[str, str], positions: int | None) -> list[str]:
    """A line for every parameter that asks for what the model cannot do: the key, why, what to set."""
    lines = []
    for name, meaning in ALWAYS.items():
        if reasons[name]:
            lines.append(f"params.yaml: base.model: {meaning} ({reasons[name]}); choose another model")
    gguf = any(name.startswith("gguf") for name in wishes.quantize.formats)
    asked = [  # what is probed, whether it is asked for, by which key, what to do where the reason does not say it
        ("packing", wishes.sft.packing, "", ""),
        (
            "sft_method",
            True,
            f"sft.method: {wishes.sft.method}: ",
            "; set it to lora, or name the modules in sft.adapter",
        ),
        ("share_prompt", wishes.reward.training.share_prompt, "reward.training.share_prompt: ", "; set it to false"),
        ("reward_method", not reasons["reward_head"], f"reward.method: {wishes.reward.method}: ", "; set it to full"),
        ("share_prompt", wishes.dpo.share_prompt, "dpo.share_prompt: ", "; set it to false"),
        ("dpo_lora", True, "dpo.lora: ", "; set target_modules, or lora to null"),
        ("ppo_lora", True, "ppo.lora: ", "; set target_modules, or lora to null"),
        ("student", True, "", ""),
        ("gguf", gguf, "quantize.formats: ", ""),
        ("gguf_tokenizer", gguf, "quantize.formats: ", ""),
    ]
    for name, is_asked, key, advice in asked:
        if is_asked and reasons[name]:
            lines.append(f"params.yaml: {key}{reasons[name]}{advice}")
    if positions is not None:
        lines += too_long(wishes, positions)
    return lines


def too_long(wishes: Wishes, positions: int) -> list[str]:
    """A line for every length that exceeds what the model can read."""
    lines = []
    for name in ("sft", "dpo"):
        length = getattr(wishes, name).trainer.get("max_length") or 0
        if length > positions:
            lines.append(
                f"params.yaml: {name}.trainer.max_length: {length} tokens exceed the model's {positions} positions; "
                f"set it to at most {positions}"
            )
    for name in ("sample", "dpo", "ppo", "evaluate", "distill", "release"):
        tokens = getattr(wishes, name).max_new_tokens
        if tokens >= positions:
            lines.append(
                f"params.yaml: {name}.max_new_tokens: {tokens} tokens leave no room for a prompt in the model's "
                f"{positions} positions; lower it"
            )
    return lines


def show(facts: Mapping[str, Any], reasons: Mapping[str, str]) -> None:
    """Print a line per fact and per ability."""
    for name, value in facts.items():
        print(f"probe  {name:16s} {value}")
    for name, reason in reasons.items():
        print(f"probe  {name:16s} {f'no: {reason}' if reason else 'yes'}", flush=True)


if __name__ == "__main__":
    main(__file__, Params, run)
