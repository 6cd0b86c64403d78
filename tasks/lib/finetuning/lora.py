"""Low-rank updates (arXiv 2106.09685): their settings, the same for every stage that trains them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.lib.stage import Problem, known_keys


def lora_config(where: str, given: Mapping[str, Any], **defaults: Any) -> Any:
    """peft's LoraConfig of the fields `given` in the section `where` of params.yaml, over a stage's `defaults`.

    All linear layers but the output layer are adapted if `target_modules` is not given. Problem for a key that
    LoraConfig does not have, naming the nearest that it has, and for a value that it does not take.
    """
    from peft import LoraConfig

    fields = {"target_modules": "all-linear"} | defaults | known_keys(where, given, LoraConfig)
    try:
        config = LoraConfig(**fields)
    except (ValueError, TypeError) as error:
        raise Problem(f"params.yaml: {where}: {' '.join(str(error).split())[:200]}") from None
    for name in ("r", "lora_alpha"):
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise Problem(f"params.yaml: {where}.{name}: expected a whole number of at least 1, found {value!r}")
    return config
