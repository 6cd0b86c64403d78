"""The command line: quick help, one-line errors, exit status not 0."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from small_projects import ROOT

from flows import local_run
from flows.cli import main

Anneal = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def wide_and_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Help is laid out for a terminal: whatever the one of this run is, here it has 100 columns and no colours."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def test_help_loads_nothing_heavy(workspace: Path) -> None:
    code = (
        "import sys, time, flows.cli\n"
        "try: flows.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = ('prefect', 'dvc', 'torch', 'pydantic', 'ruamel', 'networkx', 'numpy')\n"
        "print([m for m in heavy if m in sys.modules], time.process_time())"
    )
    seconds = []
    for _ in range(3):  # the least of three: other processes on the machine make each of them slower
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
        loaded, used = done.stdout.splitlines()[-1].rsplit(" ", 1)
        assert loaded == "[]"
        seconds.append(float(used))
    assert min(seconds) < 0.5  # of CPU; 0.3 on a quiet machine


COMMANDS = (
    "annotate", "check", "completion", "merge", "params", "plan", "render", "run", "score", "status", "ui", "verify"
)  # fmt: skip


def test_the_help_names_every_command_and_each_has_help_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert not end.value.code
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("│ ") and line[2] not in " -"] == list(COMMANDS)
    for command in COMMANDS:
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert not end.value.code
        assert f"Usage: anneal {command}" in capsys.readouterr().out


def test_every_option_of_a_command_is_explained_with_its_type_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    help_text = capsys.readouterr().out
    for option in ("--stage STAGE", "--preset FILE", "--set KEY=VALUE", "--keep", "--force", "--device NAME",
                   "--oversize", "--parallel N", "--retries N"):  # fmt: skip
        line = next(line for line in help_text.splitlines() if f" {option}" in line)
        assert len(line.replace(option, "").split()) > 3, line
    assert "[default: 2]" in help_text


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert not end.value.code
    assert capsys.readouterr().out == f"{version('anneal')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["statsu"], 'Unknown command "statsu". Did you mean "status"?'),
        (["run", "--prset", "x"], "Unknown option: --prset. Did you mean --preset?"),
        (["run", "--parallel", "many"], 'Invalid value for --parallel: unable to convert "many" into int.'),
        (["check", "rows.jsonl"], "--contract requires an argument"),
        (["merge", "base"], "ADAPTER requires an argument"),
        (["verify", "a", "b"], "Unused Tokens: ['b']"),
    ],
)
def test_a_mistake_in_the_command_line_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("anneal: ") and message in error
    assert error.count("\n") == 1


def test_words_become_typed_arguments_as_often_as_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[local_run.Request] = []
    monkeypatch.setattr(local_run, "run", received.append)
    with pytest.raises(SystemExit):
        main(["run", "--force", "base", "--set", "a.b=[1, 2]", "--stage", "sft", "--set=c=d=e", "dpo", "--parallel=3"])
    with pytest.raises(SystemExit):
        main(["run", "--preset", "a.yaml", "sft", "--preset=b.yaml"])
    settings = ("a.b=[1, 2]", "c=d=e")
    assert received == [
        local_run.Request(("base", "dpo", "sft"), settings=settings, force=True, parallel=3),
        local_run.Request(("sft",), presets=(Path("a.yaml"), Path("b.yaml"))),
    ]


def test_a_shell_completes_commands_options_and_stages(workspace: Path, anneal: Anneal) -> None:
    Path("dvc.yaml").write_text("stages:\n  first: {cmd: x}\n  second: {cmd: x}\n")
    script = anneal("completion", "bash").stdout
    folder = Path("bin")
    folder.mkdir()
    command = folder / "anneal"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m flows.cli "$@"\n')
    command.chmod(0o755)
    script += """
PATH=$PWD/bin:$PATH
complete_words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _anneal; echo "${COMPREPLY[*]}"; }
complete_words anneal st
complete_words anneal run --pre
complete_words anneal run se
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["status", "--preset", "second"]


def test_status_says_what_would_run_and_why(project: Path, anneal: Anneal) -> None:
    subprocess.run(["dvc", "repro", "-q"], check=True)
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("{x: 1}", "{x: 2}"))
    lines = anneal("status").stdout.splitlines()
    assert lines[1].split() == ["left", "runs", "params.yaml:", "left.x", "1", "->", "2"]
    assert lines[2].split() == ["right", "unchanged"]
    assert lines[3].split() == ["ends@a", "may", "run", "behind", "left"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--parallel", "0"], "--parallel needs at least 1"),
        (["run", "--set", "lfet.x=1"], "did you mean left?"),
        (["run", "--preset", "presets/none.yaml"], "presets/none.yaml does not exist"),
        (["status", "strat"], "did you mean start?"),
    ],
)
def test_a_mistake_is_one_line(project: Path, anneal: Anneal, arguments: list[str], said: str) -> None:
    done = anneal(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("anneal: ") and said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_outside_of_a_project_it_says_where_to_go(workspace: Path, anneal: Anneal) -> None:
    done = anneal("run")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "there is no dvc.yaml here" in done.stderr
