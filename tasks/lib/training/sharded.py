"""A model that accelerate spreads over the processes (FSDP, DeepSpeed ZeRO): where it is loaded, and its whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tasks.lib.training.distributed import is_first, is_sharded


def loading_place() -> str | None:
    """Where a model is loaded that will be trained: on the CPU, if no GPU will hold all of it."""
    return "cpu" if is_sharded() else None


def gathered(trainer: Any, fresh: Callable[[], Any]) -> Any:
    """The trained model in one piece, in the first process; the others get what they must not save.

    The weights of a model that is spread over processes are gathered into the one that `fresh` makes.
    """
    if not is_sharded():
        return trainer.model
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not is_first():
        return trainer.model
    model = fresh()
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    if unexpected or set(missing) - set(tied):
        raise RuntimeError(f"gathered weights are not those of the model: {[*missing, *unexpected][:3]}")
    return model
