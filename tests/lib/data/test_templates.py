"""Templates render as T0's did, and never render nothing in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.lib.data.template_files import read_templates
from tasks.lib.data.templates import Rendered, Template, check_fields, render
from tasks.lib.stage import Problem

PROMPTSOURCE = """
dataset: toy
templates:
  1: !Template
    answer_choices: {choices}
    id: 1
    jinja: {jinja}
    metadata: !TemplateMetadata
      choices_in_prompt: true
      languages: [en]
    name: one
    reference: ''
"""


def ours(folder: Path, **keys: Any) -> Template:
    folder.mkdir(exist_ok=True)
    (folder / "one.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items()))
    return read_templates(folder)[0]


def promptsource(folder: Path, jinja: str, choices: str | None = None) -> Template:
    folder.mkdir(exist_ok=True)
    text = PROMPTSOURCE.replace("{jinja}", json.dumps(jinja)).replace("{choices}", json.dumps(choices))
    (folder / "templates.yaml").write_text(text)
    return read_templates(folder)[0]


def made(template: Template, **fields: Any) -> Rendered:
    result = render(template, fields, "rows.csv:1", "seed")
    assert isinstance(result, Rendered)
    return result


def test_our_templates_render_prompt_answer_label_and_choices(tmp_path: Path) -> None:
    template = ours(
        tmp_path / "review",
        prompt="Good or bad? {{ text }}\n",
        answer="{{ label }}{{ closing }}",
        label="{{ label }}",
        choices=["good", "bad"],
        system="Be brief.",
        heldout=True,
    )
    assert (template.name, template.heldout) == ("review/one", True)
    assert template.fields == {"text", "label", "closing"}
    assert made(template, text="fine", label="good", closing=" Bye!") == Rendered(
        "Good or bad? fine", "good Bye!", "good", ["good", "bad"], "Be brief."
    )


def test_promptsource_templates_split_at_the_bars_of_the_template_only(tmp_path: Path) -> None:
    template = promptsource(tmp_path / "toy", "{{ text }} ?\n|||\n{{ answer_choices[label] }}", "no ||| yes")
    assert made(template, text="a ||| b {{ label }} {% x %}", label=1) == Rendered(
        "a ||| b {{ label }} {% x %} ?", "yes", "yes", ["no", "yes"], None
    )


def test_bars_inside_a_condition_and_choices_from_the_data_split_too(tmp_path: Path) -> None:
    template = promptsource(
        tmp_path / "toy",
        "{% if text %}{{ text }} ||| {{ options[label] }}{% endif %}",
        '{{ options | join("|||") }}',
    )
    assert made(template, text="q", label=1, options=["a ||| b", "c"]).choices == ["a ||| b", "c"]
    assert render(template, {"text": "", "label": 1, "options": ["a", "c"]}, "w", "s") == "empty prompt"


def test_empty_renders_are_told_apart(tmp_path: Path) -> None:
    template = ours(tmp_path / "toy", prompt="{{ text }}", answer="{{ label }}")
    assert render(template, {"text": "  ", "label": "x"}, "w", "s") == "empty prompt"
    assert render(template, {"text": "x", "label": "\n"}, "w", "s") == "empty answer"
    assert render(promptsource(tmp_path / "p", "{{ text }}"), {"text": "x"}, "w", "s") == "empty answer"


def test_a_missing_field_is_named_with_its_template(tmp_path: Path) -> None:
    template = ours(tmp_path / "toy", prompt="{{ sentence }} {{ text }}", answer="{{ label }}")
    with pytest.raises(Problem) as caught:
        check_fields(template, ["text", "label"], "review")
    assert "toy/one.yaml: the template names the field sentence, but the rows of review have text, label" in str(
        caught.value
    )
    with pytest.raises(Problem, match="'sentence' is undefined"):
        render(template, {"text": "x", "label": "y"}, "rows.csv:1", "s")
    nested = ours(tmp_path / "nested", prompt="{{ text.head }}", answer="{{ label }}")
    with pytest.raises(Problem, match=r"rows.csv:7: .*one.yaml: .*has no attribute .*head"):
        render(nested, {"text": "x", "label": "y"}, "rows.csv:7", "s")


def test_a_label_outside_the_choices_is_a_problem(tmp_path: Path) -> None:
    template = promptsource(tmp_path / "toy", "{{ text }} ||| {{ answer_choices[label] }}", "a ||| b")
    for label in (2, "1"):
        with pytest.raises(Problem, match=r"rows\.csv:1"):
            render(template, {"text": "x", "label": label}, "rows.csv:1", "s")
    template = ours(tmp_path / "own", prompt="{{ text }}", answer="{{ label }}", choices=["a", "b"])
    with pytest.raises(Problem, match="expected an answer among 'a, b', found 'c'"):
        render(template, {"text": "x", "label": "c"}, "rows.csv:1", "s")


def test_bad_template_files_are_problems(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    cases = {
        "prompt: '{{ text'\nanswer: x\n": "one.yaml: prompt: expected a Jinja template, found",
        "prompt: x\nanswer: y\nprompts: z\n": "did you mean prompt",
        "prompt: x\n": "answer is missing",
        "prompt: x\nprompt: y\nanswer: z\n": "one.yaml:2:1",
        "prompt: !!python/object/apply:os.system [ls]\nanswer: x\n": "one.yaml:1",
    }
    folder.mkdir()
    for text, message in cases.items():
        (folder / "one.yaml").write_text(text)
        with pytest.raises(Problem) as caught:
            read_templates(folder)
        assert message in str(caught.value)
    (folder / "one.yaml").unlink()
    for text in (
        "templates:\n  1: !!python/name:os.system ''\n",
        "templates: []\n",
        "templates: {1: !Other {}}\n",
    ):
        (folder / "templates.yaml").write_text(text)
        with pytest.raises(Problem, match=r"templates\.yaml"):
            read_templates(folder)
    with pytest.raises(Problem, match="expected a folder of templates"):
        read_templates(tmp_path / "none")


def test_all_shared_promptsource_files_are_read(shared: Path) -> None:
    counts = [len(read_templates(file.parent)) for file in sorted((shared / "templates").rglob("templates.yaml"))]
    assert (len(counts), sum(counts)) == (16, 143)


def test_rotten_tomatoes_is_rendered_as_t0_rendered_it(shared: Path) -> None:
    def published(name: str) -> set[tuple[str, str]]:
        path = shared / f"rendered/rotten_tomatoes/rotten_tomatoes_{name}.jsonl"
        rows = map(json.loads, path.read_text().splitlines())
        return {(row["prompt"], row["completion"]) for row in rows}

    asked = " Did the reviewer enjoy the movie?\n"
    labelled = [(p.removesuffix(asked), int(c.startswith("Yes"))) for p, c in published("Reviewer_Enjoyment_Yes_No")]
    templates = read_templates(shared / "templates/rotten_tomatoes")
    assert len(labelled) == 200 and len(templates) == 10
    for template in templates:
        name = template.name.partition("/")[2].replace(" ", "_")
        ours = [made(template, text=text, label=label) for text, label in labelled]
        name += "_" if name == "Sentiment_with_choices" else ""  # its name ends in a blank
        assert {(f"{m.prompt}\n", f"{m.answer}<|endoftext|>") for m in ours} == published(name), name


def test_ag_news_is_rendered_as_t0_rendered_it(shared: Path) -> None:
    """The rows' texts come back out of one template's golden rows; every other template must then agree."""

    def published(name: str) -> list[tuple[str, str]]:
        lines = (shared / f"rendered/ag_news/ag_news_{name}.jsonl").read_text().splitlines()
        return [(row["prompt"], row["completion"]) for row in map(json.loads, lines)]

    templates = {t.name.partition("/")[2]: t for t in read_templates(shared / "templates/ag_news")}
    sections = ["World politics", "Sports", "Business", "Science and technology"]
    asked = " \nWhat label best describes this news article?\n"
    texts = [
        (prompt.partition(asked)[0], sections.index(answer.removesuffix("<|endoftext|>")))
        for prompt, answer in published("classify")
    ]
    assert len(texts) == 200 and len(templates) == 7
    for name, template in templates.items():
        ours = [made(template, text=text, label=label) for text, label in texts]
        assert [(f"{m.prompt}\n", f"{m.answer}<|endoftext|>") for m in ours] == published(name), name
