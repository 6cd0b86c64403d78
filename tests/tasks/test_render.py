"""render: rows through templates; held-out things stay held out; no row or prompt stands in two splits."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from sections import section

from tasks.lib.data.rows import Row, read_parquet
from tasks.lib.evaluation.measures import score
from tasks.lib.stage import Problem, Stage
from tasks.render import examples, run

PARAMS: dict[str, Any] = {
    "raw": "data/raw",
    "sources": "data/raw",
    "templates": "templates",
    "heldout_clusters": ["inference"],
    "heldout_templates": [],
    "shares": {"train": 0.4, "preference": 0.2, "policy": 0.1, "validation": 0.1, "test": 0.2},
    "templates_per_row": 2,
    "max_per_task": 1000,
    "total": None,
    "max_per_task_evaluation": 100,
    "commercial": True,
    "show": 0,
}
TEMPLATES = {"a": "Good or bad? {{ text }}", "b": "{{ text }}. Good or bad?", "c": "Judge: {{ text }}"}


def add_task(name: str, cluster: str, rows: list[tuple[str, str]], more: str = "") -> None:
    folder, templates = Path("data/raw") / name, Path("templates") / name
    folder.mkdir(parents=True, exist_ok=True)
    templates.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": t, "label": a}) + "\n" for t, a in rows))
    (folder / "source.yaml").write_text(
        f"file: {name}/rows.jsonl\nformat: jsonl\nlicense: CC0-1.0\ncluster: {cluster}\ntask: {name}\n"
        f"templates: {name}\nfields: {{text: str, label: str}}\n{more}"
    )
    for template, prompt in {**TEMPLATES, "new": "New: {{ text }}"}.items():
        (templates / f"{template}.yaml").write_text(
            f'prompt: "{prompt}"\nanswer: "{{{{ label }}}}!"\nlabel: "{{{{ label }}}}"\n'
            + "choices: [good, bad]\n"
            + "heldout: true\n" * (template == "new")
        )


def texts(name: str, count: int = 200) -> list[tuple[str, str]]:
    return [(f"{name} text {i}", ("good", "bad")[i % 2]) for i in range(count)]


@pytest.fixture
def world(workspace: Path) -> Path:
    add_task("review", "sentiment", texts("review"))
    add_task("follows", "inference", texts("follows", 50))
    return workspace


def rendered(**changes: Any) -> list[Row]:
    run(section("render", **PARAMS | changes), Stage("render"))
    return read_parquet(Path("data/instructions/rows.parquet"))


def report() -> dict[str, Any]:
    return json.loads(Path("reports/render.json").read_text())


def test_rows_hold_what_the_templates_made_of_them(world: Path) -> None:
    rows = rendered()
    row = next(row for row in rows if row["template"] == "review/b")
    assert row["messages"] == [{"role": "user", "content": f"{row['text']}. Good or bad?"}]
    assert row["answer"] == row["label"] + "!" and row["choices"] == ["good", "bad"]
    assert (row["source"], row["license"], row["cluster"]) == ("review", "CC0-1.0", "sentiment")
    assert len({row["id"] for row in rows}) == len(rows)


def test_held_out_clusters_and_templates_are_only_tested(world: Path) -> None:
    by_split = defaultdict(list)
    for row in rendered():
        by_split[row["split"]].append(row)
    assert {row["cluster"] for row in by_split["clusters"]} == {"inference"}
    assert len(by_split["clusters"]) == 50
    assert {row["template"] for row in by_split["templates"]} == {"review/new"}
    assert {row["row"] for row in by_split["templates"]} == {row["row"] for row in by_split["rows"]}
    for split in ("train", "preference", "policy", "validation", "rows"):
        assert {row["template"] for row in by_split[split]} <= {"review/a", "review/b", "review/c"}
        assert {row["cluster"] for row in by_split[split]} == {"sentiment"}


def test_a_row_has_several_templates_in_training_and_one_split(world: Path) -> None:
    rows = rendered()
    splits, templates = defaultdict(set), defaultdict(list)
    for row in rows:
        splits[row["row"]].add("test" if row["split"] in ("rows", "templates") else row["split"])
        templates[row["row"], row["split"]].append(row["template"])
    assert all(len(found) == 1 for found in splits.values())
    assert {len(set(found)) for (_, split), found in templates.items() if split == "train"} == {2}
    assert Counter(len(found) for (_, split), found in templates.items() if split == "validation").keys() == {1}
    assert {len(f) for (_, s), f in _by_row(rendered(templates_per_row="all")).items() if s == "train"} == {3}


def _by_row(rows: list[Row]) -> dict[tuple[str, str], list[str]]:
    found = defaultdict(list)
    for row in rows:
        found[row["row"], row["split"]].append(row["template"])
    return found


def test_a_row_never_moves_whatever_is_added(world: Path) -> None:
    before = {row["row"]: row["split"] for row in rendered() if row["split"] != "templates"}
    (world / "templates/review/d.yaml").write_text('prompt: "D: {{ text }}"\nanswer: "{{ label }}"\n')
    add_task("review", "sentiment", [*texts("other"), *reversed(texts("review"))])
    after = {row["row"]: row["split"] for row in rendered(templates_per_row=1) if row["split"] != "templates"}
    assert before.items() <= after.items() and len(after) > len(before)


def test_equal_inputs_fall_in_one_split_and_equal_prompts_too(world: Path) -> None:
    add_task("copy", "sentiment", [(f"  {text.upper()}", label) for text, label in texts("review")])
    splits = defaultdict(set)
    for row in rendered():
        if row["split"] not in ("clusters", "templates"):
            splits[row["text"].strip().casefold()].add(row["split"])
    assert all(len(found) == 1 for found in splits.values())


def test_a_prompt_in_two_splits_stays_with_evaluation(world: Path) -> None:
    # all rows make one prompt, whatever their text
    for name in ("a", "b", "c"):
        (world / f"templates/review/{name}.yaml").write_text('prompt: "Say it."\nanswer: "{{ label }} {{ text }}"\n')
    with pytest.raises(Problem, match="no row is left for training"):
        rendered()
    add_task("more", "sentiment", texts("more"))
    rows = rendered()
    assert {row["split"] for row in rows if row["task"] == "review"} == {"rows", "templates"}
    assert report()["dropped.prompt in two splits"] > 100


def test_mixing_caps_each_task_by_hash(world: Path) -> None:
    add_task("small", "sentiment", texts("small", 40))
    whole = {row["id"] for row in rendered()}
    capped = rendered(max_per_task=30, max_per_task_evaluation=5)
    counts = Counter((row["split"], row["task"]) for row in capped)
    assert counts["train", "review"] == 30 and counts["train", "small"] <= 30 and counts["clusters", "follows"] == 5
    assert {row["id"] for row in capped} < whole
    assert sum(row["split"] == "train" for row in rendered(total=50)) == 50


def test_empty_renders_are_dropped_counted_and_listed(world: Path) -> None:
    add_task("review", "sentiment", [*texts("review"), ("", "good")])
    for name in ("a", "b", "c", "new"):
        (world / f"templates/review/{name}.yaml").write_text(f'prompt: "{name[:0]}{{{{ text }}}}"\nanswer: x\n')
    rendered()
    ledger = read_parquet(Path("data/instructions/ledger.parquet"))
    assert report()["dropped.empty prompt"] >= 1
    assert any(e["rule"] == "empty prompt" and "rows.jsonl:201: review/" in e["detail"] for e in ledger)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown cluster": ({"heldout_clusters": ["inferense"]}, "inferense is not a cluster; known: inference"),
    "an unknown template": ({"heldout_templates": ["review/z"]}, "review/z is not a template"),
    "all templates held out": (
        {"heldout_templates": ["review/a", "review/b", "review/c"]}, "every template of review is held out"
    ),
    "all clusters held out": ({"heldout_clusters": ["inference", "sentiment"]}, "no row is left for"),
    "shares that do not sum to 1": ({"shares": {**PARAMS["shares"], "test": 0.3}}, "shares must sum to 1"),
    "a misspelt key": ({"template": "x"}, "did you mean templates?"),
}  # fmt: skip


@pytest.mark.parametrize("changes, message", BAD.values(), ids=BAD)
def test_a_bad_parameter_is_a_problem(world: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Problem) as caught:
        rendered(**changes)
    assert message in str(caught.value)
    assert not Path("data/instructions/rows.parquet").exists()


def test_a_task_in_two_clusters_is_a_problem(world: Path) -> None:
    add_task("again", "other", texts("again"))
    path = world / "data/raw/again/source.yaml"
    path.write_text(path.read_text().replace("task: again", "task: review"))
    with pytest.raises(Problem, match="the task review is in two clusters: other and sentiment"):
        rendered()


def test_the_same_inputs_give_the_same_bytes(world: Path) -> None:
    rendered()
    names = ("data/instructions/rows.parquet", "data/instructions/ledger.parquet", "reports/render.json")
    before = [Path(name).read_bytes() for name in names]
    rendered()
    assert [Path(name).read_bytes() for name in names] == before


def test_promptsource_templates_render_the_shared_rows(shared: Path, workspace: Path) -> None:
    for task, file, cluster, rename, labels in (
        ("ag_news", "agnews_dev_subsample", "topic", "{sentence: text}", "{'1': 0, '2': 1, '3': 2, '4': 3}"),
        ("glue/sst2", "sst2_dev", "sentiment", "{}", "{'0': 0, '1': 1}"),
        ("glue/rte", "rte_dev", "inference", "{sentence_1: sentence1, sentence_2: sentence2}",
         "{entailment: 0, not_entailment: 1}"),
    ):  # fmt: skip
        names = {"ag_news": "text", "glue/sst2": "sentence", "glue/rte": "sentence1: str, sentence2"}[task]
        folder = workspace / "sources" / task
        folder.mkdir(parents=True)
        (folder / "source.yaml").write_text(
            f"file: tasks/{file}.jsonl\nformat: jsonl\nlicense: MIT\ncluster: {cluster}\ntask: {task}\n"
            f"templates: {task}\nfields: {{{names}: str, label: str}}\n"
            f"rename: {rename}\nlabels: {labels}\nlimit: 60\n"
        )
    rows = rendered(
        raw=str(shared), sources="sources", templates=str(shared / "templates"),
        heldout_templates=["ag_news/recommend", "glue/sst2/review"],
    )  # fmt: skip
    assert {row["task"] for row in rows} == {"ag_news", "glue/sst2", "glue/rte"}
    assert {row["template"] for row in rows if row["split"] == "templates"} == {
        "ag_news/recommend",
        "glue/sst2/review",
    }
    assert all(row["label"] in row["choices"] for row in rows if row["choices"])


def test_a_set_of_real_sources_has_right_labels_or_is_refused(shared: Path, workspace: Path) -> None:
    own = {
        "bbh": {"prompt": "{{ input }}", "answer": "{{ target }}"},
        "gsm8k": {  # chain of thought: the reasoning stands before the answer, the label is the bare number
            "prompt": "{{ question }}",
            "answer": "{{ answer.partition('####')[0] | trim }}\nThe answer is {{ answer.rpartition('#### ')[2] }}.",
            "label": "{{ answer.rpartition('#### ')[2] }}",
        },
        "sst2": {"prompt": "{{ sentence }}?", "answer": "{{ answer_choices[label] }}", "choices": "bad ||| good"},
        "news": {"prompt": "{{ sentence }}", "answer": "{{ answer_choices[label] }}",
                 "choices": ["World", "Sports", "Business", "Technology"]},
    }  # fmt: skip
    for name, keys in own.items():
        (workspace / "templates" / name).mkdir(parents=True)
        (workspace / "templates" / name / "one.yaml").write_text(json.dumps(keys))
    labelled = "fields: {sentence: str, label: str}\n"
    sources = {
        "news": "file: tasks/agnews_test.jsonl\n" + labelled + "labels: {'1': 0, '2': 1, '3': 2, '4': 3}\n",
        "sst2": "file: tasks/sst2_dev.jsonl\n" + labelled + "labels: {'0': 0, '1': 1}\n",
        "gsm8k": "file: tasks/gsm8k_train_2000.jsonl\nfields: {question: str, answer: str}\ninputs: [question]\n",
        "bbh": "file: tasks/boolean_expressions.json\nfields: {input: str, target: str}\ninputs: [input]\n",
        "seeds": "file: tasks/self_instruct_seed_tasks.jsonl\nshape: self_instruct\n",
    }
    for name, more in sources.items():
        (workspace / "sources" / name).mkdir(parents=True)
        form = "jsonl" if ".jsonl" in more else "json"
        (workspace / "sources" / name / "source.yaml").write_text(
            f"format: {form}\nlicense: MIT\ncluster: {name}\ntask: {name}\n{more}"
            + ("" if "shape" in more else f"templates: {name}\n") + "limit: 150\n"
        )  # fmt: skip
    settings = {"raw": str(shared), "sources": "sources", "heldout_clusters": []}
    rows = rendered(**settings)
    assert {row["task"] for row in rows} == set(sources)
    answers = {(row["task"], row["text"]): row for row in rows}

    truth = {"1": "World", "2": "Sports", "3": "Business", "4": "Technology"}
    news = [json.loads(line) for line in (shared / "tasks/agnews_test.jsonl").read_text().splitlines()]
    checked = [
        (answers[key]["answer"], truth[raw["label"]]) for raw in news if (key := ("news", raw["sentence"])) in answers
    ]
    assert len(checked) >= 150 and all(made == true for made, true in checked)

    sums = next(row for row in rows if row["task"] == "gsm8k")
    assert sums["answer"].endswith(f"\nThe answer is {sums['label']}.") and "####" not in sums["answer"]
    assert {row["answer"] for row in rows if row["task"] == "bbh"} == {"True", "False"}
    seed = next(row for row in rows if row["task"] == "seeds")
    assert seed["template"] == "seeds/as_given" and seed["answer"] and seed["choices"] is None

    unlabelled = sources["sst2"].replace("sst2_dev", "sst2_test").replace("labels: {'0': 0, '1': 1}\n", "")
    (workspace / "sources/sst2/source.yaml").write_text(
        f"format: jsonl\nlicense: MIT\ncluster: sst2\ntask: sst2\n{unlabelled}templates: sst2\n"
    )
    before = Path("data/instructions/rows.parquet").read_bytes()
    with pytest.raises(Problem):
        rendered(**settings)
    assert Path("data/instructions/rows.parquet").read_bytes() == before


def test_bad_rows_are_listed_and_the_rest_is_rendered(world: Path) -> None:
    path = world / "data/raw/review/rows.jsonl"
    path.write_text(path.read_text() + '{"text": "cut o')
    with pytest.raises(Problem, match=r"rows\.jsonl:201: expected valid JSON"):
        rendered()
    source = world / "data/raw/review/source.yaml"
    source.write_text(source.read_text() + "on_bad_row: quarantine\n")
    assert rendered()
    (entry,) = map(json.loads, (world / "data/instructions/quarantine.jsonl").read_text().splitlines())
    assert entry["source"] == "review" and "rows.jsonl:201: expected valid JSON" in entry["problem"]
    assert report()["quarantined"] == 1


def test_turns_and_weights(world: Path) -> None:
    (world / "templates/review/chat.yaml").write_text(
        'turns: [{role: user, content: "May I ask?"}, {role: assistant, content: "Yes."}]\n'
        'prompt: "{{ text }}?"\nanswer: "{{ label }}"\nchoices: [good, bad]\n'
    )
    rows = rendered(templates_per_row="all")
    chat = next(row for row in rows if row["template"] == "review/chat")
    assert [m["role"] for m in chat["messages"]] == ["user", "assistant", "user"]
    everything = sum(row["split"] == "train" for row in rows)
    half = rendered(templates_per_row="all", weights={"review": 0.5})
    assert sum(row["split"] == "train" for row in half) == round(everything / 2)
    with pytest.raises(Problem, match=r"render\.weights: reviews is not a task; known: follows, review"):
        rendered(weights={"reviews": 2.0})


def test_examples_come_from_every_source_and_write_nothing(world: Path) -> None:
    rows = examples(section("render", **PARAMS), 4)
    assert [row["source"] for row in rows] == ["follows", "review", "follows", "review"]
    assert not (world / "data/instructions").exists()


def test_rows_of_gsm8k_carry_their_measure_and_their_own_solutions_are_right(shared: Path, workspace: Path) -> None:
    (workspace / "templates/gsm8k").mkdir(parents=True)
    template = {"prompt": "{{ question }}", "answer": "{{ answer }}", "label": "{{ answer }}"}
    (workspace / "templates/gsm8k/one.yaml").write_text(json.dumps(template))
    (workspace / "sources/gsm8k").mkdir(parents=True)
    (workspace / "sources/gsm8k/source.yaml").write_text(
        "file: tasks/gsm8k_train_2000.jsonl\nformat: jsonl\nlicense: MIT\ncluster: maths\ntask: gsm8k\n"
        "templates: gsm8k\nfields: {question: str, answer: str}\ninputs: [question]\nmeasure: number\nlimit: 300\n"
    )
    rows = rendered(raw=str(shared), sources="sources", heldout_clusters=[])
    assert len(rows) > 250 and {row["measure"] for row in rows} == {"number"}
    for row in rows:
        value = row["label"].split("#### ")[1]
        assert score("number", row["label"], f"So the answer is ${value}.") == 1.0
        assert score("number", row["label"], f"So the answer is {value}1.") == 0.0
