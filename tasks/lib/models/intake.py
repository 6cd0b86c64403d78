"""A model from elsewhere, of the Hub, a folder or a GGUF file, becomes a model folder of the pipeline."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.models.model_folder import OTHER_WEIGHTS, existing_folder, first_line, weights_hash
from tasks.lib.models.precision import chosen_dtype
from tasks.lib.models.stored_template import stored_template, turn_end
from tasks.lib.models.template_proof import refuse_unlike_rows
from tasks.lib.settings.base import SystemRole
from tasks.lib.stage import Problem

FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
TEMPLATE_LIMIT = 200_000  # characters: of a chat template, and of what it makes of a short conversation


@dataclass(frozen=True)
class Source:
    """Where a model comes from: its folder or GGUF file, its name in reports, and the commit if it is of the Hub."""

    path: Path
    name: str
    commit: str | None = None


def take_in(
    model: str,
    revision: str | None,
    into: str | Path,
    template_date: date | None = None,
    system_role: SystemRole = "merge",
    *,
    precision: str = "auto",
) -> dict[str, Any]:
    """Make what `base.model` names a model folder of the pipeline at `into`.

    It is the id of a Hub model at a fixed revision, a folder, a .gguf file, or `package:file.gguf`, a file inside an
    installed package. Adds what post-training needs and the model may lack: a pad token (unk, else EOS), a chat
    template of which the pipeline's rows are made, and as EOS the token that ends a turn of that template.
    `template_date` and `system_role` are those of params.yaml. Returns facts for a report.
    """
    source = source_of(model, revision)
    facts: dict[str, Any] = {"source": source.name, "revision": source.commit}
    if source.path.suffix == ".gguf":
        from tasks.lib.models.gguf_models import load_gguf

        policy, tokenizer, stored = load_gguf(source.path)
        facts["dequantised_from"] = stored
    else:
        _refuse_quantised(source)
        policy, tokenizer = load_policy(source.path, on="cpu"), load_tokenizer(source.path)
    embeddings = policy.get_input_embeddings().weight.shape[0]
    drop_unused_tokens(tokenizer, embeddings)
    if len(tokenizer) > embeddings:
        raise Problem(f"{model}: {len(tokenizer)} tokens, but {embeddings} embeddings; they are of two models")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    facts["template"] = settle_template(tokenizer, model, template_date, system_role)
    save_model(policy, tokenizer, into, dtype=chosen_dtype(precision, policy.num_parameters()))
    return facts | {"parameters": sum(p.numel() for p in policy.parameters()), "weights": weights_hash(into)}


def settle_template(tokenizer: Any, model: str, day: date | None, system_role: SystemRole) -> str:
    """Give the tokenizer the template and the EOS that the pipeline's rows are made with: added, given or patched.

    Problem when rows would not be what the template writes.
    """
    given = tokenizer.chat_template
    if isinstance(given, dict):  # named ones: tool_use, rag ...
        if "default" not in given:
            raise Problem(f"{model}: the chat templates are {', '.join(sorted(given))}; one has to be named default")
        given = tokenizer.chat_template = given["default"]
    if given is not None and len(given) > TEMPLATE_LIMIT:
        raise Problem(f"{model}: expected a chat template of at most {TEMPLATE_LIMIT} characters")
    try:
        tokenizer.chat_template = stored_template(tokenizer, day, system_role)
        tokenizer.eos_token = turn_end(tokenizer, TEMPLATE_LIMIT)
    except Problem as problem:
        raise Problem(f"{model}: {problem}") from None
    refuse_unlike_rows(tokenizer, model)
    if given is None:
        return "added"
    return "given" if tokenizer.chat_template == given else "patched"


def source_of(model: str, revision: str | None) -> Source:
    """What `base.model` names, fetched if it is of the Hub. The name of a local path is its last part."""
    local = Path(model)
    if local.is_file() and local.suffix == ".gguf":
        return Source(local, local.name)
    if local.exists():
        return Source(existing_folder(local), local.name)
    package, colon, file = model.partition(":")
    if colon:
        return Source(_file_of_package(package, file), model)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", model) or local.suffix in OTHER_WEIGHTS:
        raise Problem(f"{model}: no such folder or .gguf file, and not the id of a model on the Hub")
    if revision is None or revision in {"main", "master"}:
        raise Problem(f"{model}: a Hub model needs a fixed revision: a commit (40 hex digits) or a tag")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # offline, absent, gated: each its own class
        raise Problem(f"{model}@{revision}: cannot be downloaded: {first_line(error)}") from None
    return Source(existing_folder(folder), model, folder.name)


def _file_of_package(package: str, file: str) -> Path:
    """A .gguf file inside an installed package, which is found without being imported."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise Problem(f"{package}:{file}: the package {package} is not installed; pip install it, or correct the name")
    home = Path(spec.submodule_search_locations[0])
    path = home / file
    if path.suffix != ".gguf" or not path.is_file():
        there = ", ".join(sorted(found.relative_to(home).as_posix() for found in home.rglob("*.gguf"))) or "none"
        raise Problem(f"{package}:{file}: the package has no such .gguf file; it has: {there}")
    return path


def _refuse_quantised(source: Source) -> None:
    """Problem for a folder of int8, nf4, GPTQ ... weights: they can neither be trained nor be quantised again."""
    config = source.path / "config.json"
    if config.is_file() and '"quantization_config"' in config.read_text(encoding="utf-8"):
        raise Problem(f"{source.name}: its weights are quantised (config.json); name the model they were made from")


def drop_unused_tokens(tokenizer: Any, embeddings: int) -> None:
    """Take special tokens without an embedding out of the tokenizer, if no role and no template needs them.

    Gemma 3's <image_soft_token> is one, for pictures; transformers adds <|endoftext|> to some that it reads from GGUF.
    No text makes a special token, so the ids of every text stay.
    """
    needed = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    unused: set[str] = set()
    for number, token in tokenizer.added_tokens_decoder.items():
        name = token.content
        if number >= embeddings and token.special and name not in needed and name not in str(tokenizer.chat_template):
            unused.add(name)
    if not unused:
        return
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in unused]
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(content))
    for key, value in tokenizer.special_tokens_map.items():  # where it stands here it is added again at loading
        if value in unused:
            for named in (
                tokenizer._special_tokens_map,
                tokenizer.init_kwargs.get("model_specific_special_tokens", {}),
            ):
                named.pop(key, None)
    tokenizer._extra_special_tokens = [token for token in tokenizer.extra_special_tokens if str(token) not in unused]
