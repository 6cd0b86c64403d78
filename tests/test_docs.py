"""The documentation: what it names exists, and its lines wrap."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sections import nested

from flows.code_deps import modules
from flows.params import params_of
from tasks.lib.data.rules import RULES as CURATION
from tasks.lib.importers.formats import FORMATS
from tasks.lib.importers.rankings import RULES
from tasks.lib.stage import read_yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
STAGES = sorted(path.stem for path in (ROOT / "tasks").glob("*.py") if path.stem != "__init__")
WIDTH = 120
OUR_FILE = re.compile(r"\b((?:tasks|flows|tests|data_contracts|benchmarks|configs|docs|presets)/[\w/.-]+\.\w+)")
OF_THE_READER = "tidy"  # the stage that CONTRIBUTING.md adds
FREE_KEYS = {"trainer", "lora", "adapter", "tasks"}  # below them are fields of a library, or names of the user
MISSPELT = "sft.keeep"  # what README shows the message of


def page_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(params=PAGES, ids=page_name)
def page(request: pytest.FixtureRequest) -> str:
    return request.param.read_text(encoding="utf-8")


def prose(text: str) -> Iterator[str]:
    """The lines that are in no block of code and in no table, which cannot wrap."""
    is_code = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code and not line.startswith("|"):
            yield line


def test_lines_wrap(page: str) -> None:
    assert [line for line in prose(page) if len(line) > WIDTH] == []


def test_files_that_are_named_exist(page: str) -> None:
    named = {file for file in OUR_FILE.findall(page) if OF_THE_READER not in file}
    assert [file for file in sorted(named) if not (ROOT / file).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_tests_that_are_named_exist(page: str) -> None:
    defined: set[str] = set()
    for file in (ROOT / "tests").rglob("*.py"):
        defined |= {file.stem, *re.findall(r"def (test_\w+)", file.read_text(encoding="utf-8"))}
    assert set(re.findall(r"\btest_\w+", page)) - defined - {f"test_{OF_THE_READER}"} == set()


def test_functions_are_in_the_files_that_are_named_with_them(page: str) -> None:
    """`name` in `path`: what architecture.md's walks through the code are made of."""
    places = re.findall(r"`(\w+)`\s+in\s+`([\w/]+\.py)`", page)
    wrong = []
    for name, file in places:
        names = set()
        for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.AnnAssign):
                names.add(ast.unparse(node.target))
        if name not in names:
            wrong.append(f"{file}: {name}")
    assert wrong == []


def test_parameters_that_are_named_exist(page: str) -> None:
    """`stage.key` in running text, and what --set is given."""
    for stage, key in re.findall(rf"\b({'|'.join(STAGES)})\.([a-z_]+(?:\.[a-z_]+)*)", page):
        if f"{stage}.{key}" == MISSPELT or key.endswith(("py", "json", "md", "png", "csv", "yaml", "parquet")):
            continue
        model = params_of(stage)
        for part in key.split("."):
            assert part in model.model_fields, f"{stage}.{key}"
            group = nested(model, part)
            if group is None or part in FREE_KEYS:
                break
            model = group


def test_modules_that_are_run_exist(page: str) -> None:
    for name in re.findall(r"python -m ((?:tasks|flows|benchmarks|data_contracts)\.\w+)", page):
        assert (ROOT / name.replace(".", "/")).with_suffix(".py").is_file() or OF_THE_READER in name, name


def test_every_stage_is_in_the_table_of_the_readme() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8")
    first_cells = " ".join(re.findall(r"(?m)^\| (`[^|]+`) \|", table))
    assert [stage for stage in STAGES if f"`{stage}`" not in first_cells and stage != "check"] == []


# --- tables in the docs of what the code lists ---


def first_column(section: str) -> list[str]:
    return [cell.strip() for cell in re.findall(r"(?m)^\| ([^|]+) \|", section)][1:]  # without the header


def test_annotation_lists_the_formats_in_their_order() -> None:
    text = (ROOT / "docs" / "annotation.md").read_text(encoding="utf-8")
    table = text.split("| format | rows |")[1].split("\n\n")[0]
    assert first_column(f"| format |{table}") == [known.name for known in FORMATS]


def test_annotation_lists_the_rules_by_which_annotations_are_dropped() -> None:
    text = (ROOT / "docs" / "annotation.md").read_text(encoding="utf-8")
    table = text.split("| rule | why |")[1].split("\n\n")[0]
    rules = [rule for cell in first_column(f"| rule |{table}") for rule in cell.split(", ")]
    assert sorted(rules) == sorted(RULES)


def test_data_lists_the_rules_of_curation_in_their_order() -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    table = text.split("| rule | drops a row for |")[1].split("\n\n")[0]
    named = first_column(f"| rule |{table}")
    assert named == list(CURATION)


def test_params_wrap() -> None:
    for path in (ROOT / "params.yaml", ROOT / "dvc.yaml", *sorted((ROOT / "presets").glob("*.yaml"))):
        assert [line for line in path.read_text(encoding="utf-8").splitlines() if len(line) > WIDTH] == [], path
        assert read_yaml(path)


def test_modules_named_in_docstrings_of_settings_exist() -> None:
    for name, path in modules().items():
        if name.startswith("tasks.lib.settings"):
            for file in OUR_FILE.findall(path.read_text(encoding="utf-8")):
                assert (ROOT / file).exists(), f"{path}: {file}"
