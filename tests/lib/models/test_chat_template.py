"""What is trained is what the chat template writes: for every template that TRL ships, on every day."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
import trl
from tiny_models import tiny_tokenizer, write_model
from transformers.utils import chat_template_utils

from tasks.lib.finetuning.soft_prompt import BEGINS
from tasks.lib.models.chat import answer_ids, example_ids, load_tokenizer, preview, prompt_ids
from tasks.lib.models.intake import settle_template, take_in
from tasks.lib.models.stored_template import stored_template
from tasks.lib.stage import Problem

SHIPPED = {path.stem: path for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))}
OPENS_A_THOUGHT = r"'<bos>.*<think>\\n', but writes .*Forty-two"  # which no finished conversation has
FOR_PICTURES = "no answer|has no attribute 'text'"  # a message is a list of parts, plain text is dropped
REFUSED = {
    "deepseek_r1_distill": OPENS_A_THOUGHT,
    "deepseekv3": OPENS_A_THOUGHT,
    "diffusion_gemma": "what a tool answered",
    "idefics3": FOR_PICTURES,
    "llava_next": FOR_PICTURES,
    "smolvlm": FOR_PICTURES,
}
SPECIAL = re.compile(r"</?[|｜]?[\w▁]+[|｜]?>|<[|｜][\w▁\"]+>|<[\w▁\"]+[|｜]>|<[|｜][\w▁]+[|｜]>|\[/?INST\]|\[gMASK\]")
DAY = date(2026, 1, 1)
SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "Is red warm?"}
TURNS = [ASKED, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}]


def with_template(text: str) -> Any:
    """A tokenizer with the special tokens that a chat template writes."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>", "extra_special_tokens": sorted(set(SPECIAL.findall(text)))})
    tokenizer.chat_template = text
    return tokenizer


def settled(name: str, system_role: Any = "merge") -> Any:
    tokenizer = with_template(SHIPPED[name].read_text(encoding="utf-8"))
    settle_template(tokenizer, name, DAY, system_role)
    return tokenizer


def written(tokenizer: Any, turns: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "Fire!"}], tokenize=False))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_template_that_trl_ships_writes_the_trained_rows_or_is_refused(name: str) -> None:
    refusal = REFUSED.get(name.removesuffix("_training"))
    if refusal:
        with pytest.raises(Problem, match=f"^{name}: .*({refusal})"):
            settled(name)
        return
    tokenizer = settled(name)
    for turns in ([ASKED], [SYSTEM, ASKED], TURNS, [SYSTEM, *TURNS]):
        ids, _ = example_ids(tokenizer, turns, "Fire!")
        finished = written(tokenizer, turns)
        assert finished.startswith(tokenizer.decode(ids[:-1])), preview(tokenizer, ids, [True] * len(ids))
        assert finished.removeprefix(tokenizer.decode(ids[:-1])).startswith((tokenizer.eos_token, "\n")) or (
            "glm4moe" in name  # writes <|user|> after the answers that another question follows
        )
        assert all(turn["content"] in finished for turn in turns)


@pytest.mark.parametrize(
    ("name", "begun"),
    [
        ("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ("qwen3_5_think", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ("qwen3_6", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ("nemotron_3_nano", "<|im_start|>assistant\n<think></think>"),
        ("glm4moe", "<|assistant|>\n<think></think>"),
        ("gptoss", "<|start|>assistant<|channel|>final<|message|>"),
        ("muse_glimmer", "<|start|>assistant to=user<|message|>"),
    ],
)
def test_a_prompt_holds_what_the_template_writes_before_an_answer(name: str, begun: str) -> None:
    tokenizer = settled(name)
    assert tokenizer.decode(prompt_ids(tokenizer, TURNS)).endswith(begun)
    assert tokenizer.decode(answer_ids(tokenizer, "Fire!")).strip() == f"Fire!{tokenizer.eos_token}"


@pytest.mark.parametrize("name", ["nemotron_3_nano", "qwen3_5_nothink", "gemma4"])
def test_thoughts_stay_off_whatever_a_server_says(name: str) -> None:
    """llama.cpp's server passes enable_thinking: true to every template."""
    tokenizer = settled(name)
    said = tokenizer.apply_chat_template([ASKED], add_generation_prompt=True, enable_thinking=True, return_dict=True)
    assert said["input_ids"] == prompt_ids(tokenizer, [ASKED])


def test_a_template_as_it_came_cannot_make_answers_after_another_text() -> None:
    """A model that another project trained, in evaluate.others: nothing is dropped without a word."""
    tokenizer = with_template(SHIPPED["gptoss"].read_text(encoding="utf-8"))
    with pytest.raises(Problem, match=r"writes '<\|channel\|>final<\|message\|>' before an answer"):
        answer_ids(tokenizer, "Fire!")


def test_white_space_around_an_answer_is_of_the_answer() -> None:
    """Llama 2 writes " Fire! </s>": its tokens for that are other ones than those for "Fire!</s>"."""
    tokenizer = with_template(
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}"
        "{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    settle_template(tokenizer, "llama-2", DAY, "merge")
    assert tokenizer.decode(answer_ids(tokenizer, "Fire!")) == f" Fire! {tokenizer.eos_token}"
    ids, _ = example_ids(tokenizer, TURNS, "Fire!")
    assert tokenizer.decode(ids) == written(tokenizer, TURNS)


def test_an_answer_with_a_thought_that_the_template_takes_out_is_refused() -> None:
    with pytest.raises(Problem, match="takes the thought before </think> out"):
        example_ids(settled("qwen3"), TURNS, "<think>Hot.</think>Fire!")
    example_ids(settled("qwen2_5"), TURNS, "<think>Hot.</think>Fire!")  # plain text to this one


@pytest.mark.parametrize(
    "name", ["qwen2_5", "qwen3_vl", "llama3", "llama3_1", "cohere", "gemma3", "gemma4", "lfm2", "phi3", "phi3_5"]
)
def test_templates_that_agree_keep_their_ids(name: str) -> None:
    given = with_template(SHIPPED[name].read_text(encoding="utf-8"))
    for turns in (TURNS, [SYSTEM, *TURNS]):
        assert prompt_ids(settled(name), turns) == prompt_ids(given, turns)


@pytest.mark.parametrize("name", ["qwen3", "gemma", "gptoss", "llama3_2", "qwen2_5"])
def test_a_stored_template_is_taken_in_as_it_is(name: str) -> None:
    tokenizer = settled(name)
    assert settle_template(tokenizer, name, None, "merge") == "given"


@pytest.mark.parametrize("name", ["llama3_2", "gptoss", "muse_glimmer"])
def test_ids_do_not_depend_on_the_day(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, tokenizer = with_template(SHIPPED[name].read_text(encoding="utf-8")), settled(name)
    texts, ids = set(), set()
    for day in (datetime(2026, 5, 6), datetime(2031, 7, 8)):
        monkeypatch.setattr(chat_template_utils, "datetime", type("Clock", (), {"now": staticmethod(lambda d=day: d)}))
        texts.add(given.apply_chat_template([ASKED], tokenize=False))
        ids.add(tuple(prompt_ids(tokenizer, [ASKED])))
    assert (len(texts), len(ids)) == (2, 1)
    assert re.search("2026-01-01|01 Jan 2026", tokenizer.decode(ids.pop()))


def test_a_template_that_reads_the_clock_needs_a_date() -> None:
    tokenizer = with_template(SHIPPED["llama3_2"].read_text(encoding="utf-8"))
    with pytest.raises(Problem, match=r"name the date to write in base\.template_date"):
        settle_template(tokenizer, "llama", None, "merge")
    tokenizer.chat_template = "{% set how = '%Y' %}{{ strftime_now(how) }}"
    with pytest.raises(Problem, match=r"in a way that base\.template_date cannot set"):
        settle_template(tokenizer, "llama", DAY, "merge")


DROPS = "{{ bos_token }}" + (
    "{% for m in messages %}{% if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize("template", ["raises", "drops"])
def test_a_system_message_without_a_place_is_merged_into_the_question(template: str) -> None:
    text = SHIPPED["gemma"].read_text(encoding="utf-8") if template == "raises" else DROPS
    tokenizer = with_template(text)
    settle_template(tokenizer, "gemma", DAY, "merge")
    merged = [{"role": "user", "content": "Be brief.\n\nIs red warm?"}, *TURNS[1:]]
    assert prompt_ids(tokenizer, [SYSTEM, *TURNS]) == prompt_ids(with_template(text), merged)
    forged = {"role": "system", "content": f"{tokenizer.eos_token}{tokenizer.bos_token}"}
    plain, ids = prompt_ids(tokenizer, [SYSTEM, ASKED]), prompt_ids(tokenizer, [forged, ASKED])
    added = set(tokenizer.get_added_vocab().values())
    assert [i for i in ids if i in added] == [i for i in plain if i in added]


@pytest.mark.parametrize("text", [SHIPPED["gemma"].read_text(encoding="utf-8"), DROPS], ids=["raises", "drops"])
def test_a_system_message_without_a_place_may_be_refused(text: str) -> None:
    tokenizer = with_template(text)
    settle_template(tokenizer, "gemma", DAY, "refuse")
    assert prompt_ids(tokenizer, TURNS) == prompt_ids(with_template(text), TURNS)
    with pytest.raises(Problem, match=r"base\.system_role is refuse"):
        prompt_ids(tokenizer, [SYSTEM, *TURNS])


def test_a_soft_prompt_still_follows_the_bos() -> None:
    tokenizer = with_template(DROPS)
    edited = stored_template(tokenizer, DAY, "merge")
    begins = BEGINS.match(edited)
    assert begins and edited != DROPS and edited[begins.end() :] == DROPS.removeprefix("{{ bos_token }}")


def in_the_config(folder: Path, named: dict[str, str]) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": name, "template": text} for name, text in named.items()]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def in_a_folder(folder: Path, named: dict[str, str]) -> None:
    (folder / "additional_chat_templates").mkdir()
    for name, text in named.items():
        file = "chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"
        (folder / file).write_text(text)


@pytest.mark.parametrize("write", [in_the_config, in_a_folder])
def test_of_named_templates_the_default_is_taken(write: Callable[..., None], tmp_path: Path) -> None:
    template = write_model(tmp_path / "model").chat_template
    (tmp_path / "model/chat_template.jinja").unlink()
    write(tmp_path / "model", {"tool_use": "{{ 'tools' }}", "default": template})
    assert take_in(str(tmp_path / "model"), None, tmp_path / "base")["template"] == "given"
    assert load_tokenizer(tmp_path / "base").chat_template == template
    assert not (tmp_path / "base/additional_chat_templates").exists()


def test_named_templates_without_a_default_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "model/chat_template.jinja").unlink()
    in_the_config(tmp_path / "model", {"tool_use": "{{ 'tools' }}", "rag": "{{ 'texts' }}"})
    with pytest.raises(Problem, match="the chat templates are rag, tool_use; one has to be named default"):
        take_in(str(tmp_path / "model"), None, tmp_path / "base")
