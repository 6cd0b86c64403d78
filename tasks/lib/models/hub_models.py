"""A model from elsewhere, of the Hub or of a folder, becomes a model folder of the pipeline."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.chat_template import default_template, turn_end
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.models.model_folder import OTHER_WEIGHTS, existing_folder, first_line, weights_hash
from tasks.lib.stage import Problem

FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
TEMPLATE_LIMIT = 200_000  # characters: of a chat template, and of what it makes of a short conversation


def materialise(name_or_path: str, revision: str | None, into: str | Path) -> dict[str, Any]:
    """Make a Hub model at a pinned revision, or a local folder, a model folder of the pipeline at `into`.

    Adds what post-training needs and the model may lack: a pad token (unk, else EOS), a chat template with
    `{% generation %}`, and as EOS the token that ends a turn of that template. Returns facts for a report.
    """
    source, commit = _fetched(name_or_path, revision)
    model, tokenizer = load_policy(source, on="cpu"), load_tokenizer(source)
    embeddings = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > embeddings:
        raise Problem(f"{name_or_path}: {len(tokenizer)} tokens, but {embeddings} embeddings; they are of two models")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    given = tokenizer.chat_template
    if given is not None and (not isinstance(given, str) or len(given) > TEMPLATE_LIMIT):
        raise Problem(f"{name_or_path}: expected one chat template of at most {TEMPLATE_LIMIT} characters")
    tokenizer.chat_template = default_template(tokenizer)
    tokenizer.eos_token = turn_end(tokenizer, TEMPLATE_LIMIT)
    save_model(model, tokenizer, into)
    template = "added"
    if given is not None:
        template = "given" if tokenizer.chat_template == given else "patched"
    return {
        "source": Path(name_or_path).name if commit is None else name_or_path,  # no absolute paths in reports
        "revision": commit,
        "parameters": sum(p.numel() for p in model.parameters()),
        "template": template,
        "weights": weights_hash(into),
    }


def _fetched(name: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder, and the commit if it came from the Hub."""
    local = Path(name)
    if local.exists():
        return existing_folder(local), None
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) or local.suffix in OTHER_WEIGHTS:
        raise Problem(f"{name}: no such folder, and not the id of a model on the Hub")
    if revision is None or revision in {"main", "master"}:
        raise Problem(f"{name}: a Hub model needs a fixed revision: a commit (40 hex digits) or a tag")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # offline, absent, gated: each its own class
        raise Problem(f"{name}@{revision}: cannot be downloaded: {first_line(error)}") from None
    return existing_folder(folder), folder.name
