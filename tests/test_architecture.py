"""The rules of docs/architecture.md, held by reading imports: no rule here needs a reviewer's memory."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest

from flows.code_deps import PACKAGES, code_of, generated, imports, modules
from tasks.lib.stage import SHARED_KEYS, TOP_KEYS, read_yaml

ROOT = Path(__file__).resolve().parents[1]
STAGES = sorted(path.stem for path in (ROOT / "tasks").glob("*.py") if path.stem != "__init__")
HOMES = {"prefect": "flows", "dvc": "flows", "great_expectations": "data_contracts"}
BELOW = {  # a room of the library, and the rooms it may import besides itself and settings, which imports none
    "settings": set(),
    "data": set(),
    "models": {"data"},
    "training": {"models"},
    "finetuning": {"training", "models"},
    "importers": {"data"},
    "annotation": {"importers", "data"},
    "reward": {"annotation", "importers", "finetuning", "training", "models", "data"},
    "dpo": {"annotation", "finetuning", "training", "models", "data"},
    "rl": {"evaluation", "finetuning", "training", "models"},
    "evaluation": {"models", "data"},
    "export": {"evaluation", "training", "models", "data"},
}
FORMATS_OF_FILES = {  # what these read is no section of params.yaml
    "tasks.lib.annotation.page",
    "tasks.lib.data.sources",
    "tasks.lib.data.template_files",
    "tasks.lib.evaluation.panel",
}
HEAVY = ("torch", "transformers", "trl", "matplotlib", "great_expectations", "prefect", "dvc")
EMPTY_WORDS = {"util", "utils", "helper", "helpers", "common", "manager", "managers", "misc", "registry"}


@functools.cache
def entries() -> dict[str, dict[str, Any]]:
    """The stages of dvc.yaml; of a `foreach` or `matrix` entry its `do` part or itself."""
    document = read_yaml(ROOT / "dvc.yaml")
    return {name: entry.get("do", entry) for name, entry in document["stages"].items()}


def listed(entry: dict[str, Any], key: str) -> list[str]:
    """The paths under deps, outs, metrics or plots, with or without settings."""
    return [item if isinstance(item, str) else next(iter(item)) for item in entry.get(key, [])]


def sources() -> list[Path]:
    """Every Python file of the project."""
    return [path for folder in (*PACKAGES, "tests", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


def subject(module: str) -> str | None:
    """`policy` of `tasks.lib.rl.losses`; None outside the library's subjects."""
    parts = module.split(".")
    return parts[2] if parts[:2] == ["tasks", "lib"] and len(parts) > 3 else None


# --- one word per stage ---


def test_one_word_names_a_stage_in_files_params_graph_and_tests() -> None:
    sections = [key for key in read_yaml(ROOT / "params.yaml") if key not in TOP_KEYS]
    assert sorted(sections) == STAGES
    assert sorted(entries()) == STAGES
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "tasks").glob("test_*.py")}
    assert [stage for stage in STAGES if stage not in tests] == []


@pytest.mark.parametrize("stage", STAGES)
def test_the_graph_runs_a_stage_by_its_word_and_reads_its_section(stage: str) -> None:
    entry = entries()[stage]
    launcher = rf"(python|\$\{{{stage}\.launcher\}})"
    assert re.fullmatch(rf"{launcher} -m tasks\.{stage}( \$\{{\w+\}})?", entry["cmd"]), entry["cmd"]
    assert {str(key).split(".")[0] for key in entry["params"]} >= {stage, *SHARED_KEYS}
    if "${key}" not in entry["cmd"]:
        assert f"reports/{stage}.json" in listed(entry, "metrics")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_a_docstring_params_run_and_a_main_line(stage: str) -> None:
    tree = ast.parse(modules()[f"tasks.{stage}"].read_text(encoding="utf-8"))
    text = ast.get_docstring(tree) or ""
    assert text.startswith(f"{stage}: ")
    for word in ("Reads ", "Writes ", f"python -m tasks.{stage}"):
        assert word in text, f"the docstring does not say: {word}"
    assert any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body)
    imported = [ast.unparse(node) for node in tree.body if isinstance(node, ast.ImportFrom)]
    own = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    settings = rf"from tasks\.lib\.settings\.{stage} import .*\bParams"
    assert "Params" in own or any(re.fullmatch(settings, line) for line in imported)
    last = tree.body[-1]
    assert isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'"


# --- settings ---


def models_of(path: Path) -> list[ast.ClassDef]:
    """The pydantic models that a file defines."""
    classes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    names = {"BaseModel"}
    found = []
    for node in classes:
        if names & set(map(ast.unparse, node.bases)):
            names.add(node.name)
            found.append(node)
    return found


def test_models_of_parameters_are_in_settings_and_formats_of_files_with_their_readers() -> None:
    files = {module for module, path in modules().items() if models_of(path) and subject(module) != "settings"}
    assert files - {f"tasks.{stage}" for stage in STAGES} == FORMATS_OF_FILES


def test_every_pydantic_model_refuses_unknown_keys() -> None:
    for path in modules().values():
        for model in (model for model in models_of(path) if "BaseModel" in map(ast.unparse, model.bases)):
            assert [ast.unparse(word) for word in model.keywords] == ["extra='forbid'"], f"{path}: {model.name}"


def test_settings_import_pydantic_and_the_standard_library_alone() -> None:
    for module in (name for name in modules() if subject(name) == "settings"):
        others = imports(module) - {*sys.stdlib_module_names, "pydantic"}
        assert {name for name in others if subject(name) != "settings"} == set(), module


def test_validating_params_loads_nothing_heavy() -> None:
    """Before a run every section is validated: importing torch, transformers and TRL takes longer than some stages."""
    program = f"import sys; from flows import params; [params.params_of(stage) for stage in {STAGES!r}]\n"
    program += f"print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- arrows ---


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_stage(stage: str) -> None:
    others = {f"tasks.{other}" for other in STAGES if other != stage}
    assert imports(f"tasks.{stage}") & others == set()
    assert {name for name in imports(f"tasks.{stage}") if name.startswith("flows")} == set()


@pytest.mark.parametrize("module", sorted(name for name in modules() if name.startswith("tasks.lib")))
def test_the_library_imports_only_what_is_below_it(module: str) -> None:
    ours = {name for name in imports(module) if name.split(".")[0] in PACKAGES}
    assert {name for name in ours if not name.startswith("tasks.lib")} == set()
    mine = subject(module)
    allowed = {None, "settings", mine, *BELOW[mine]} if mine else {None}
    assert {name for name in ours if subject(name) not in allowed} == set()


def test_the_picture_of_the_rooms_has_exactly_the_arrows_of_below() -> None:
    """Of the Mermaid block in docs/architecture.md: a line `room --> room & room`."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    _, first, *arrows = text.split("```mermaid")[1].split("```")[0].splitlines()
    assert first.startswith("flowchart")
    drawn: dict[str, set[str]] = {room: set() for room in BELOW}
    for arrow in arrows:
        room, rooms = arrow.split(" --> ")
        drawn[room.strip()].update(rooms.split(" & "))
    assert drawn == BELOW


def test_the_table_of_the_rooms_has_each_of_them() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("| room | what is in it |")[1].split("\n\n")[0]
    assert sorted(re.findall(r"(?m)^\| `(\w+)` \|", table)) == sorted(BELOW)


def test_contracts_import_the_library_but_no_stage_and_no_flow() -> None:
    for module in (name for name in modules() if name.startswith("data_contracts")):
        ours = {name for name in imports(module) if name.split(".")[0] in ("tasks", "flows")}
        assert {name for name in ours if not name.startswith("tasks.lib")} == set(), module


def test_imports_form_no_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in modules() and module not in done:
            for name in imports(module, at_run_time_only=True):
                visit(name, (*path, module))
            done.add(module)

    for module in modules():
        visit(module, ())


@pytest.mark.parametrize("package", HOMES)
def test_a_heavy_package_has_one_home(package: str) -> None:
    strangers = [name for name in modules() if package in imports(name) and not name.startswith(HOMES[package])]
    assert strangers == []


def test_the_losses_load_neither_orchestrator_nor_contracts() -> None:
    program = f"import sys, tasks.lib.rl.losses; print(sorted({set(HOMES)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the graph knows the code ---


def test_the_lists_of_code_are_those_that_the_imports_give() -> None:
    for path, text in generated().items():
        assert path.read_text(encoding="utf-8") == text, "python -m flows.code_deps --write"


@pytest.mark.parametrize("stage", ["render", "sft", "release"])
def test_what_python_loads_for_a_stage_is_listed(stage: str) -> None:
    """An import in the middle of a function is listed too, and not seen here."""
    program = f"import sys, tasks.{stage}; print(*(getattr(m, '__file__', None) for m in sys.modules.values()))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {Path(file) for file in done.stdout.split() if file.startswith(str(ROOT / "tasks"))}
    files = {file.relative_to(ROOT).as_posix() for file in loaded if file.stat().st_size}
    assert files - {"tasks/__init__.py"} <= set(code_of(f"tasks.{stage}"))


def test_no_import_is_relative() -> None:
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not isinstance(node, ast.ImportFrom) or not node.level, f"{module}: write the whole name"


def test_the_graph_has_no_two_stages_with_one_output() -> None:
    outputs = [
        out for entry in entries().values() for key in ("outs", "metrics", "plots") for out in listed(entry, key)
    ]
    assert sorted(outputs) == sorted(set(outputs))


# --- names ---


def test_no_module_is_named_after_an_installed_package_or_the_standard_library() -> None:
    names = {part for module in modules() for part in module.split(".")} - {*STAGES}
    assert names & set(sys.stdlib_module_names) == set()
    assert names & packages_of_constraints() == set()
    assert {*STAGES} & (set(sys.stdlib_module_names) | packages_of_constraints()) == set()


@functools.cache
def packages_of_constraints() -> frozenset[str]:
    """Top-level names of the packages in constraints.txt (not of whatever else a machine has installed)."""
    names: set[str] = set()
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if "==" in line:
            try:
                files = distribution(line.split("==")[0].strip()).files or []
            except PackageNotFoundError:
                continue
            names |= {
                file.parts[0].removesuffix(".py") for file in files if file.suffix == ".py" and len(file.parts) < 3
            }
    return frozenset(names)


def test_nothing_is_called_utils_helpers_common_or_manager() -> None:
    for path in sources():
        assert not EMPTY_WORDS & set(path.stem.lower().split("_")), path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                words = {word.lower() for word in re.findall(r"[A-Z][a-z]+", node.name)}
                assert not EMPTY_WORDS & words, f"{path}: {node.name}"


def test_every_python_file_says_what_it_is() -> None:
    silent = [path for path in sources() if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_bytes()))]
    assert silent == []


COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_comprehension_does_one_thing(module: str) -> None:
    """One `for`, no other comprehension inside, and no name bound in its condition: else it is a loop."""
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, COMPREHENSIONS):
            where = f"{module}:{node.lineno}"
            inner = [each for each in ast.walk(node) if each is not node]
            assert len(node.generators) == 1, where
            assert not any(isinstance(each, COMPREHENSIONS) for each in inner), where
            assert not any(isinstance(each, ast.NamedExpr) for each in inner), where


def test_no_file_holds_a_path_of_this_machine() -> None:
    local = [
        str(ROOT).encode() + b"/",
        str(Path.home()).encode() + b"/",
        b"/work" + b"/main",
        b"/work" + b"/shared",
    ]
    for path in text_files():
        content = path.read_bytes()
        assert not [word for word in local if word in content], path


def text_files() -> Iterator[Path]:
    """The project's own files, not what stages and tools make."""
    made = {"models", "reports", "export", "dvc_plots", "build", "dist", "__pycache__"}
    for folder, inner, files in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        if here == Path("data"):
            inner[:] = ["raw"]
        hidden = {name for name in inner if name.startswith(".") and name not in (".ci", ".github")}
        inner[:] = sorted(set(inner) - hidden - made - {n for n in inner if n.endswith(".egg-info")})
        yield from (Path(folder) / name for name in sorted(files) if name != ".git")  # of a worktree
