"""A GGUF file gives back the model and the tokens; what llama.cpp would run differently is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as Fast

from tasks.lib.export import gguf_vocabulary
from tasks.lib.export.gguf_checks import ODD_TEXTS, as_engine_input, check_engine, check_tokens
from tasks.lib.export.gguf_file import read_gguf, read_vocabulary, write_gguf
from tasks.lib.export.gguf_vocabulary import describe
from tasks.lib.stage import Problem

TEXTS = ["It's 12345 red, BLUE words!", "we'll  see\n\n what\tcomes ", "naïve 😀 <|user|> text"]
TALK = [{"role": "user", "content": "Say the word red"}]


def llama(size: int, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {
        "vocab_size": size, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**(shape | changes))).eval()


def byte_bpe(pre_tokenizer: Any, **changes: Any) -> Fast:
    bpe = Tokenizer(models.BPE(**changes))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizer, decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|end|>", "<|user|>"], initial_alphabet=alphabet)
    bpe.train_from_iterator([*TEXTS, "the red words, the blue words, 123 1234 12345"] * 3, trainer)
    return Fast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>")


def byte_level(**changes: Any) -> Any:
    return pre_tokenizers.ByteLevel(**({"add_prefix_space": False} | changes))


def split(pattern: str) -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level(use_regex=False)])


def rounded(model: Any) -> Any:
    """The model with weights that f16 holds exactly. (`model.half()` would round RoPE's frequencies too.)"""
    for weight in model.parameters():
        if weight.ndim == 2:  # vectors stay f32
            weight.data = weight.data.half().float()
    return model


@torch.no_grad()
def difference(first: Any, second: Any) -> float:
    ids = torch.arange(3, 40)[None]
    return (first(ids).logits - second(ids).logits).abs().max().item()


@pytest.mark.parametrize("tied", [True, False])
def test_f16_gives_the_logits_back_and_the_same_bytes(tmp_path: Path, tied: bool) -> None:
    tokenizer = tiny_tokenizer()
    model = llama(len(tokenizer), tie_word_embeddings=tied)
    for name in ("a", "b"):
        assert write_gguf(model, tokenizer, tmp_path / f"{name}.gguf", "f16", "tiny") == []
    back = read_gguf(tmp_path / "a.gguf")
    assert back.config.tie_word_embeddings is tied
    assert difference(model, back) < 1e-3
    assert difference(rounded(model), back) < 1e-6  # nothing but the rounding of the weights
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_q8_0_is_near_and_rows_that_do_not_fit_stay_f16(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = llama(len(tokenizer), intermediate_size=100)
    notes = write_gguf(model, tokenizer, tmp_path / "m.gguf", "q8_0", "tiny")
    assert [note.split(":")[0] for note in notes] == ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]
    assert 0 < difference(model, read_gguf(tmp_path / "m.gguf")) < 0.02


@pytest.mark.parametrize(
    ("pre", "pre_tokenizer", "changes"),
    [
        ("gpt-2", byte_level(), {}),
        (
            "smollm",
            pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()]),
            {},
        ),
        ("llama-bpe", split(gguf_vocabulary.LLAMA3), {"ignore_merges": True}),
        ("qwen2", split(gguf_vocabulary.QWEN2), {}),
    ],
)
def test_known_pre_tokenizers_are_named_and_give_equal_tokens(
    pre: str, pre_tokenizer: Any, changes: dict[str, Any]
) -> None:
    tokenizer = byte_bpe(pre_tokenizer, **changes)
    vocabulary = describe(tokenizer, len(tokenizer) + 3)
    assert vocabulary.pre == pre and vocabulary.tokens[-1].startswith("[unused")
    for text in (*TEXTS, *ODD_TEXTS):
        assert vocabulary.encode(text) == tokenizer(text).input_ids, text


def test_the_chat_template_asks_the_engine_for_the_tokens_of_training(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    write_gguf(llama(len(tokenizer)), tokenizer, tmp_path / "m.gguf", "f16", "tiny")
    vocabulary = read_vocabulary(tmp_path / "m.gguf")
    assert vocabulary.chat_template and "generation %}" not in vocabulary.chat_template
    check_tokens(tokenizer, vocabulary, [TALK], TEXTS)


def test_a_prefix_space_moves_into_the_chat_template() -> None:
    tokenizer = byte_bpe(byte_level(add_prefix_space=True))
    tokenizer.chat_template = (
        "{% for message in messages %}<|user|>{% generation %}{{ message.content }}{% endgeneration %}"
        "<|end|>{% endfor %}"
    )
    vocabulary = describe(tokenizer, len(tokenizer))
    assert "' ' + message.content" in str(vocabulary.chat_template)
    assert as_engine_input("red", True) == " red" and as_engine_input(" red", True) == " red"
    check_tokens(tokenizer, vocabulary, [TALK], TEXTS[:2])


def test_other_tokens_are_found() -> None:
    tokenizer = tiny_tokenizer()
    vocabulary = describe(tokenizer, len(tokenizer))
    worse = replace(vocabulary, merges=vocabulary.merges[:-5])
    with pytest.raises(Problem, match="different tokens"):
        check_tokens(tokenizer, worse, [TALK], [" ".join(map(tokenizer.decode, range(len(tokenizer))))])


@pytest.mark.parametrize(
    ("tokenizer", "named"),
    [
        (lambda: byte_bpe(split(r"\w+|\W+")), r"split \w+"),
        (
            lambda: byte_bpe(pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), byte_level()])),
            "Punctuation",
        ),
        (lambda: normalised(byte_bpe(byte_level())), "the normalizer NFC"),
        (lambda: Fast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}))), "a WordLevel model"),
    ],
)
def test_what_llama_cpp_has_no_rule_for_is_refused(tokenizer: Any, named: str) -> None:
    with pytest.raises(Problem, match=re.escape(named)):
        describe(tokenizer(), 320)


def normalised(tokenizer: Fast) -> Fast:
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attention_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "activation gelu"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope type linear"),
    ],
)
def test_a_model_that_llama_cpp_would_run_differently_is_refused(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(Problem, match=named):
        write_gguf(llama(len(tokenizer), **changes), tokenizer, tmp_path / "m.gguf", "f16", "tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_a_model_and_a_truncated_one_are_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    file = tmp_path / "m.gguf"
    write_gguf(llama(len(tokenizer)), tokenizer, file, "f16", "tiny")
    for size in (3, 200, file.stat().st_size // 2):
        (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:size])
        with pytest.raises(Problem, match="not a readable GGUF file"):
            read_gguf(tmp_path / "cut.gguf")


def test_a_vocabulary_file_is_no_model(shared: Path) -> None:
    with pytest.raises(Problem, match="holds no Llama model"):
        read_gguf(shared / "models/ggml-vocab-llama-spm.gguf")


def test_our_sentencepiece_gives_the_tokens_that_llama_cpp_gave(shared: Path) -> None:
    """llama.cpp's own test vectors for its vocabulary file: texts, and the ids that it made of them."""
    file = shared / "models/ggml-vocab-llama-spm.gguf"
    vocabulary = replace(read_vocabulary(file), adds_space=True, adds_bos=False)
    texts = Path(f"{file}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    wanted = Path(f"{file}.out").read_text().splitlines()
    compared = 0
    for text, line in zip(texts, wanted, strict=False):
        assert vocabulary.encode(text) == [int(word) for word in line.split()], text
        compared += 1
    assert compared > 30


def test_stories260k_keeps_tokens_logits_and_story(shared: Path, tmp_path: Path) -> None:
    source = shared / "models/stories260K"
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    write_gguf(model, tokenizer, tmp_path / "m.gguf", "f16", "stories")
    back, vocabulary = read_gguf(tmp_path / "m.gguf"), read_vocabulary(tmp_path / "m.gguf")
    story = json.loads((source / "golden_greedy.json").read_text())["text"]
    lines = (shared / "corpora/tinystories_sample.txt").read_text().splitlines()
    check_tokens(tokenizer, vocabulary, [], [story, *lines, "</s> in a text <s>"])
    ids = torch.tensor([tokenizer(story).input_ids])[:, :200]
    with torch.no_grad():
        assert (rounded(model)(ids).logits - back(ids).logits).abs().max().item() < 1e-4
        written = back.generate(ids[:, :1], max_new_tokens=100, do_sample=False, eos_token_id=[1, 2])
    assert story.startswith(tokenizer.decode(written[0], skip_special_tokens=True).strip())


def test_llama_cpp_itself_reads_the_same_tokens_and_gives_the_same_probabilities(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the extra `engine` is not installed")
    tokenizer = tiny_tokenizer()
    write_gguf(llama(len(tokenizer)), tokenizer, tmp_path / "m.gguf", "q8_0", "tiny")
    model = read_gguf(tmp_path / "m.gguf")
    line = check_engine(tmp_path / "m.gguf", model, tokenizer, [TALK, [{"role": "user", "content": "1 😀 \n é"}]])
    assert line and line.startswith("llama.cpp agrees: 2 prompts")
    with pytest.raises(Problem, match="other probabilities"):
        check_engine(tmp_path / "m.gguf", scaled(model), tokenizer, [TALK])
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(Problem, match=r"llama.cpp stopped with status"):
        check_engine(tmp_path / "m.gguf", model, tokenizer, [TALK])


def scaled(model: Any) -> Any:
    model.lm_head.weight.data *= 100
    return model
