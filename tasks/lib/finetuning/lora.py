"""Low-rank updates (arXiv 2106.09685): their settings and their folder, the same for every stage that trains them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.lib.models.adapter_folder import PLAIN_STARTS, adapter_of, is_whole_difference, save_adapter
from tasks.lib.models.loading import save_model
from tasks.lib.models.precision import kept_dtype
from tasks.lib.stage import Problem, known_keys

REFUSED = {  # fields of LoraConfig with which the result is no plain model, or not the one that was trained
    "alora_invocation_tokens": "updates that wait for a token cannot be merged",
    "arrow_config": "the stage trains one adapter",
    "inference_mode": "nothing would be trained",
    "kasa_config": "it changes the base before the first step",
    "layer_replication": "the trained model would have other layers than its base",
    "lora_bias": "the merged weights have no place for its biases",
    "megatron_config": "the models are those of transformers",
    "monteclora_config": "its term of the loss would be left out",
    "runtime_config": "the stage decides what is computed where",
    "task_type": "the stage sets it",
    "use_bdlora": "it is for serving a model in shards",
}
# ways to begin: those that leave the base's weights as they are (MiCA's layers are no plain LoRA, so it is saved with
# all weights), and those that move a part of them into the adapter
KEEP_THE_BASE = (*PLAIN_STARTS, "mica")
SPLIT_THE_BASE = re.compile(r"pissa|pissa_niter_\d+|olora")


def lora_config(where: str, given: Mapping[str, Any], *, needs_base: str = "", **defaults: Any) -> Any:
    """peft's LoraConfig of the fields `given` in the section `where` of params.yaml, over a stage's `defaults`.

    All linear layers but the output layer are adapted if `target_modules` is not given. `needs_base` says why the
    weights below the adapter must stay those of the base. Problem for a key that LoraConfig does not have, naming the
    nearest that it has, for a value that it does not take, and for what breaks a promise of the stages.
    """
    from peft import LoraConfig

    fields = {"target_modules": "all-linear"} | defaults | known_keys(where, given, LoraConfig)
    refuse_fields(where, given, needs_base)
    try:
        config = LoraConfig(**fields)
    except (ValueError, TypeError) as error:
        raise Problem(f"params.yaml: {where}: {' '.join(str(error).split())[:200]}") from None
    for name in ("r", "lora_alpha"):
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise Problem(f"params.yaml: {where}.{name}: expected a whole number of at least 1, found {value!r}")
    return config


def refuse_fields(where: str, given: Mapping[str, Any], needs_base: str = "") -> None:
    """Problem for fields of LoraConfig after which the written model would not be the one that was trained."""
    for name, reason in REFUSED.items():
        if given.get(name):
            raise Problem(f"params.yaml: {where}.{name} cannot be set here: {reason}")
    start = given.get("init_lora_weights", True)
    splits = isinstance(start, str) and SPLIT_THE_BASE.fullmatch(start)
    if not splits and start not in KEEP_THE_BASE:
        raise Problem(
            f"params.yaml: {where}.init_lora_weights: {start} needs data beforehand or begins with another model than "
            "the base; choose true, gaussian, orthogonal, mica, pissa, pissa_niter_16 or olora"
        )
    if needs_base and splits:
        raise Problem(f"params.yaml: {where}.init_lora_weights: {start} changes the base's weights, but {needs_base}")
    bias = given.get("bias", "none")
    if needs_base and bias != "none":
        raise Problem(f"params.yaml: {where}.bias: {bias} trains the base's own biases, but {needs_base}")


def refuse_modules(where: str, config: Any, model: Any) -> None:
    """Problem for an adapter on the output layer, which TRL's losses read past, and on embeddings that are its weights.

    Merged into weights that two layers share, an update of one changes the other, which was trained without it. Problem
    also when the model has none of the modules that are to be adapted.
    """
    from peft.tuners.tuners_utils import check_target_module_exists

    named = config.target_modules
    if named == "all-linear" or not named:
        return
    try:
        adapted = [module for name, module in model.named_modules() if check_target_module_exists(config, name)]
    except re.error as error:
        raise Problem(f"params.yaml: {where}.target_modules: not a regular expression: {error}") from None
    if not adapted:
        words = named if isinstance(named, str) else ", ".join(sorted(named))
        raise Problem(f"params.yaml: {where}.target_modules: {model.config.model_type} has no module {words}")
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if any(module is head for module in adapted):
        raise Problem(f"params.yaml: {where}.target_modules: the output layer cannot be adapted; leave it out")
    is_tied = head is not None and head.weight is embeddings.weight
    if is_tied and any(module is embeddings for module in adapted):
        raise Problem(
            f"params.yaml: {where}.target_modules: the embeddings are the weights of the output layer too, and an "
            "update of one would change both; leave them out, or name them in modules_to_save"
        )


def save_adapted(model: Any, tokenizer: Any, base: Path, path: Path) -> None:
    """Write a model of peft's: its adapter, which stands on the folder `base`.

    All weights are written if the adapter began by changing the base, as PiSSA does: then the two are not the model.
    """
    if is_whole_difference(model):
        save_adapter(adapter_of(model), model, tokenizer, base, path)
    else:
        save_model(model.merge_and_unload(), tokenizer, path, dtype=kept_dtype(base))
