"""A tokenizer as GGUF describes it, and what llama.cpp makes of that description.

llama.cpp's own converter knows a tokenizer by a hash and so refuses every self-trained one. Here the
vocabulary is read from tokenizer.json, what is not known is refused, and `encode` tokenizes from the
description alone, by llama.cpp's rules (src/llama-vocab.cpp), so that the release gate can compare the ids.
"""

from __future__ import annotations

import heapq
import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from tasks.lib.stage import Problem

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # gguf.TokenType

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# llama.cpp's name of a pre-tokenizer -> the steps of tokenizer.json it stands for, the splits it makes
PRE_TOKENIZERS: dict[str, tuple[list[str], list[str]]] = {
    "gpt-2": (["bytes of words"], [GPT2]),
    "smollm": (["digits", "bytes of words"], [r"\p{N}", GPT2]),
    "llama-bpe": (["split " + LLAMA3, "bytes"], [LLAMA3]),
    "qwen2": (["split " + QWEN2, "bytes"], [QWEN2]),
}


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer keys of a GGUF file. `tokens[i]` is token i; `types[i]` is its gguf.TokenType."""

    model: str  # "gpt2" (byte-level BPE) or "llama" (SentencePiece BPE with byte fallback)
    pre: str  # name of the pre-tokenizer; "default" for model llama
    tokens: list[str]
    types: list[int]
    merges: list[str]  # "left right", best first; empty for model llama
    scores: list[float]  # higher merges first; empty for model gpt2
    bos: int | None
    eos: int | None
    pad: int | None
    unk: int | None
    adds_bos: bool
    adds_space: bool  # model llama only: the engine ignores it for gpt2
    chat_template: str | None

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token -> id."""
        return {token: index for index, token in enumerate(self.tokens)}

    @cached_property
    def _specials(self) -> re.Pattern[str]:
        """Matches the tokens that are cut out of a text before the rest is tokenized, the longest first."""
        specials = []
        for token, kind in zip(self.tokens, self.types, strict=True):
            if kind in (CONTROL, USER_DEFINED, UNKNOWN):
                specials.append(token)
        specials.sort(key=len, reverse=True)
        pattern = "|".join(re.escape(token) for token in specials) or "(?!)"  # which matches nothing
        return re.compile(f"({pattern})")

    @cached_property
    def _byte_bpe(self) -> Tokenizer:
        """Byte-level BPE as llama.cpp does it for `model` gpt2, in the splits of the pre-tokenizer `pre`."""
        merges = []
        for merge in self.merges:
            left, _, right = merge.partition(" ")
            merges.append((left, right))
        ordinary = {token: index for token, index in self.ids.items() if self.types[index] == NORMAL}
        engine = Tokenizer(models.BPE(vocab=ordinary, merges=merges, ignore_merges=self.pre == "llama-bpe"))
        steps: list[Any] = []
        for pattern in PRE_TOKENIZERS[self.pre][1]:
            steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        engine.pre_tokenizer = pre_tokenizers.Sequence(steps)
        engine.decoder = decoders.ByteLevel()
        return engine

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """The ids that llama.cpp gives the text, special tokens in it parsed (llama_vocab::tokenize)."""
        ids = []
        if add_special and self.adds_bos and self.bos is not None:
            ids.append(self.bos)
        for piece in self._specials.split(text):
            if not piece:
                continue
            if self._specials.fullmatch(piece):
                ids.append(self.ids[piece])
            elif self.model == "gpt2":
                ids.extend(self._byte_bpe.encode(piece).ids)
            else:
                ids.extend(self._sentencepiece(piece))
        return ids

    def _sentencepiece(self, text: str) -> list[int]:
        """llm_tokenizer_spm: merge the neighbours whose union has the highest score, leftmost first."""
        if self.adds_space:
            text = f" {text}"
        # a linked list of symbols: where two were merged, the left one holds their union, the right one is empty
        symbols = list(text.replace(" ", "\u2581"))
        following = [*range(1, len(symbols)), -1]
        preceding = list(range(-1, len(symbols) - 1))
        queue: list[tuple[float, int, int, str]] = []  # (-score, left, right, union): the smallest is merged next

        def offer(left: int, right: int) -> None:
            union = symbols[left] + symbols[right]
            if left >= 0 and right >= 0 and union in self.ids:
                heapq.heappush(queue, (-self.scores[self.ids[union]], left, right, union))

        for left, right in pairwise(range(len(symbols))):
            offer(left, right)
        while queue:
            _, left, right, union = heapq.heappop(queue)
            if following[left] != right or symbols[left] + symbols[right] != union:
                continue  # one of the two was merged meanwhile
            symbols[left], symbols[right] = union, ""
            following[left], preceding[right] = following[right], -1
            if following[left] >= 0:
                preceding[following[left]] = left
            following[right] = -1
            offer(preceding[left], left)
            offer(left, following[left])

        ids = []
        for symbol in symbols:
            if not symbol:
                continue
            if symbol in self.ids:
                ids.append(self.ids[symbol])
            else:
                ids.extend(self.ids[_byte_token(byte)] for byte in symbol.encode())
        return ids


def _byte_token(byte: int) -> str:
    """SentencePiece's token for a byte of a character that has no token."""
    return f"<0x{byte:02X}>"


def describe(tokenizer: Any, size: int) -> Vocabulary:
    """The GGUF description of a fast tokenizer for a model with `size` embedding rows.

    Raises Problem when llama.cpp has no rule for what tokenizer.json asks for.
    """
    layout = json.loads(tokenizer.backend_tokenizer.to_str())
    if layout["model"]["type"] != "BPE":
        raise _unknown(f"a {layout['model']['type']} model")
    is_byte_level = not layout["model"].get("byte_fallback")
    if is_byte_level:
        model, pre = "gpt2", _pre_tokenizer(layout)
    else:
        model, pre = "llama", _sentencepiece_layout(layout)
    tokens, types = _tokens(layout, size, is_byte_level)
    merges = [_merge(pair) for pair in layout["model"]["merges"]]
    ids_of_a_text = tokenizer("a").input_ids  # with what the tokenizer puts around every text
    if ids_of_a_text[-1] == tokenizer.eos_token_id:
        raise _unknown("an end token after every text")
    vocabulary = Vocabulary(
        model=model,
        pre=pre,
        tokens=tokens,
        types=types,
        merges=merges if is_byte_level else [],
        scores=[] if is_byte_level else _scores(tokens, merges),
        bos=tokenizer.bos_token_id,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        unk=tokenizer.unk_token_id,
        adds_bos=ids_of_a_text[0] == tokenizer.bos_token_id,
        adds_space=not is_byte_level,
        chat_template=None,
    )
    return replace(vocabulary, chat_template=_chat_template(tokenizer, vocabulary))


def adds_prefix_space(tokenizer: Any) -> bool:
    """True if the byte-level tokenizer puts a space before a text. llama.cpp never does: the text must."""
    layout = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"]  # not the decoder
    return '"add_prefix_space": true' in json.dumps(layout)


def _merge(pair: str | list[str]) -> str:
    """A merge as GGUF spells it, "left right"; tokenizer.json has two spellings."""
    return pair if isinstance(pair, str) else " ".join(pair)


def _pre_tokenizer(layout: dict[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer of a byte-level BPE."""
    if layout["normalizer"] is not None:
        raise _unknown(f"the normalizer {layout['normalizer']['type']}")
    first = layout["pre_tokenizer"] or {"type": "no pre-tokenizer"}
    steps = []
    for step in first.get("pretokenizers", [first]):
        if step["type"] == "ByteLevel":
            steps.append("bytes of words" if step.get("use_regex", True) else "bytes")
        elif step["type"] == "Digits" and step["individual_digits"]:
            steps.append("digits")
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            steps.append("split " + step["pattern"].get("Regex", ""))
        else:
            steps.append(step["type"])
    ignores_merges = layout["model"].get("ignore_merges", False)
    for name, (known_steps, _) in PRE_TOKENIZERS.items():
        if steps == known_steps and (name == "llama-bpe" or not ignores_merges):
            return name
    raise _unknown(f"the pre-tokenizer {' + '.join(steps)}")


def _sentencepiece_layout(layout: dict[str, Any]) -> str:
    """Check that a BPE with byte fallback replaces spaces as SentencePiece's Llama models do: "default"."""
    normalizer, pre_tokenizer = layout["normalizer"], layout["pre_tokenizer"]
    if normalizer is None:
        is_llamas = (
            pre_tokenizer is not None
            and pre_tokenizer["type"] == "Metaspace"
            and not pre_tokenizer["split"]
            and pre_tokenizer["prepend_scheme"] != "never"
        )
    else:
        steps = []
        for step in normalizer.get("normalizers", []):
            steps.append((step["type"], step.get("prepend") or step.get("content")))
        is_llamas = steps == [("Prepend", "\u2581"), ("Replace", "\u2581")] and pre_tokenizer is None
    if not is_llamas:
        raise _unknown("a SentencePiece layout other than Llama's")
    for byte in range(256):
        if _byte_token(byte) not in layout["model"]["vocab"]:
            raise _unknown(f"byte fallback without a token for byte {byte}")
    return "default"


def _tokens(layout: dict[str, Any], size: int, is_byte_level: bool) -> tuple[list[str], list[int]]:
    """Token texts and types for ids 0..size-1; rows of the embedding without a token become UNUSED."""
    tokens = [f"[unused {index}]" for index in range(size)]
    types = [UNUSED] * size
    for token, index in layout["model"]["vocab"].items():
        is_byte = not is_byte_level and re.fullmatch(r"<0x[0-9A-F]{2}>", token)
        tokens[index] = token
        types[index] = BYTE if is_byte else NORMAL
    for added in layout["added_tokens"]:
        for flag in ("lstrip", "rstrip", "single_word"):
            if added[flag]:
                raise _unknown(f"the added token {added['content']!r} with {flag}")
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    unknown = layout["model"].get("unk_token")
    if unknown and not is_byte_level:
        types[tokens.index(unknown)] = UNKNOWN
    return tokens, types


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """A merged token's score falls with its first merge's rank; what is never merged comes last."""
    score_of: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        score_of.setdefault(merge.replace(" ", ""), -float(rank))
    return [score_of.get(token, -float(len(merges))) for token in tokens]


def _chat_template(tokenizer: Any, vocabulary: Vocabulary) -> str | None:
    """The chat template with which the engine gets the ids that the model was trained on.

    `{% generation %}` is transformers' own tag; `{% if true %}` treats white space alike. Where transformers
    puts a space before each text (`add_prefix_space`), the engine needs it in the template.
    """
    given = tokenizer.chat_template
    if given is None:
        return None
    plain = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", given)
    plain = re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", plain)
    spaced = re.sub(r"\bmessage(\.content|\[['\"]content['\"]\])", r"(' ' + message\1)", plain)
    turns = [{"role": "user", "content": "One two?"}, {"role": "assistant", "content": "Three."}]
    talk = [*turns, {"role": "user", "content": "4 five!"}]
    trained = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=True)["input_ids"]
    for template in (plain, spaced):
        text = tokenizer.apply_chat_template(talk, chat_template=template, add_generation_prompt=True, tokenize=False)
        if vocabulary.encode(text, add_special=False) == list(trained):
            return template
    raise _unknown("this chat template: it would see other tokens than the model was trained on")


def _unknown(what: str) -> Problem:
    return Problem(f"gguf: llama.cpp has no rule for {what} (tokenizer.json); take gguf out of quantize.formats")
