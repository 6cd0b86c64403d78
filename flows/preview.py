"""What the templates make, on the terminal."""

from __future__ import annotations

from pathlib import Path

from tasks.lib.stage import read_params
from tasks.render import Params, examples

BASE = Path("models/base")


def print_examples(count: int) -> None:
    """Print rendered examples, the trained part in [[ ]]; as tokens where models/base is there."""
    params, _ = read_params("render", Params)
    rows = examples(params, count)
    tokenizer = None
    if BASE.is_dir():
        from tasks.lib.models.chat import example_ids, load_tokenizer, preview

        tokenizer = load_tokenizer(BASE)
    for row in rows:
        print(f"--- {row['split']}  {row['source']}  {row['template']}")
        if tokenizer is None:
            for message in row["messages"]:
                print(f"{message['role']}: {message['content']}")
            print(f"[[{row['answer']}]]")
        else:
            ids, is_trained = example_ids(tokenizer, row["messages"], row["answer"])
            print(preview(tokenizer, ids, is_trained))
            print(f"({len(ids)} tokens, {sum(is_trained)} of them trained)")
