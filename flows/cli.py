"""The command `anneal`: run the pipeline, ask what would run, check a file, rank answers, score them, verify.

A function per command. Its signature gives the options and their types, its docstring the help; what it needs is
imported inside, so that `anneal --help` stays quick.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from flows import telemetry


def _shown_default(value: object) -> str | None:
    """A default in the help: a flag that is off and a list that is empty need no words."""
    return str(value) if value else None


def _stage_names(_context: object) -> list[str]:
    """What the shell offers for STAGE."""
    from tasks.lib.stage import read_yaml

    return list(read_yaml(Path("dvc.yaml")).get("stages") or {})


Stage = Annotated[str, Parameter(metavar="STAGE", completer=_stage_names)]
File = Annotated[Path, Parameter(metavar="FILE")]
Folder = Annotated[Path, Parameter(metavar="FOLDER")]
Name = Annotated[str, Parameter(metavar="NAME")]
Count = Annotated[int, Parameter(metavar="N")]

app = App(
    name="anneal",
    help="Post-training: from a base model to a release.",
    version=lambda: version("anneal"),
    help_format="plaintext",
    group_parameters="Options",
    default_parameter=Parameter(negative=(), show_default=_shown_default),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and run one command. A user's mistake is one line on standard error, with exit status 2 for one in the
    command line itself and 1 for any other."""
    telemetry.switch_off()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not words:
            app.help_print([])
            sys.exit(2)
        sys.exit(app(words, exit_on_error=False, print_error=False))
    except CycloptsError as error:
        print(f"anneal: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("anneal: stopped; run it again to continue from the last checkpoints", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `anneal status | head`
        sys.exit(0)
    except OSError as error:
        full = "the disk is full: make room, then run it again" if error.errno == errno.ENOSPC else error.strerror
        sys.exit(f"anneal: {error.filename or 'writing'}: {full}")
    except Exception as error:
        from tasks.lib.stage import Problem  # here, since it imports pydantic

        if not isinstance(error, Problem):
            raise
        sys.exit("\n".join(f"anneal: {line}" for line in str(error).splitlines()))


@app.command
def run(
    *targets: Stage,
    stage: tuple[Stage, ...] = (),
    preset: tuple[File, ...] = (),
    settings: Annotated[tuple[str, ...], Parameter(name="--set", metavar="KEY=VALUE")] = (),
    keep: bool = False,
    force: bool = False,
    device: Name | None = None,
    oversize: bool = False,
    parallel: Count = 2,
    retries: Count = 0,
) -> int:
    """Bring every stage up to date.

    As `dvc repro` does, but independent stages run at the same time, and the run is recorded with its lineage.

    Args:
        targets: Only these stages and what they depend on.
        stage: The same, as an option.
        preset: Lay presets/x.yaml over the committed params.yaml; a further one over that.
        settings: Change one parameter.
        keep: Keep uncommitted changes in params.yaml, and lay the preset over them.
        force: Run unchanged stages too.
        device: Refuse stages that do not fit this device; by default the GPU of this machine, if it has one.
        oversize: Start stages even if they do not fit by the plan.
        parallel: How many stages may run at the same time.
        retries: How often a stage that crashed is run again.
    """
    from flows import local_run

    request = local_run.Request(
        targets=(*targets, *stage),
        presets=preset,
        settings=settings,
        keep=keep,
        force=force,
        device=device,
        oversize=oversize,
        parallel=parallel,
        retries=retries,
    )
    return local_run.run(request)


@app.command
def status(*targets: Stage) -> int:
    """Print what would run, and why.

    A stage that depends on one that runs may turn out to be unchanged.

    Args:
        targets: Only these stages and what they depend on.
    """
    from flows.status import print_status

    print_status(targets)
    return 0


@app.command
def check(file: File, /, *, contract: Name) -> int:
    """Check a file of rows against a data contract.

    Args:
        file: The rows, or a source.yaml.
        contract: The contract's name in data_contracts/.
    """
    from data_contracts.contract import check_rows
    from tasks.lib.stage import Problem

    report = check_rows(contract, [file])
    problem = report.problem()
    if problem:
        raise Problem(f"{file}: {problem}")
    print(f"{file}: {len(report.results)} claims of {contract} hold for {report.rows} rows")
    return 0


@app.command
def render(*, show: Count = 5) -> int:
    """Print what the templates make.

    The trained part is in [[ ]]. Where models/base is there, rows are shown as its tokens. Nothing is written.

    Args:
        show: Examples to print.
    """
    from flows.preview import print_examples

    print_examples(show)
    return 0


@app.command
def verify(folder: Folder, /) -> int:
    """Compare a release or model folder with its manifest of hashes.

    Args:
        folder: Such as export/release.
    """
    from tasks.lib.export.manifest import verify

    manifest = verify(folder)
    print(f"{folder}: all {len(manifest['files'])} files match its manifest")
    return 0


Weighted = Annotated[str, Parameter(metavar="FOLDER=WEIGHT")]


@app.command
def merge(base: Folder, adapter: Weighted, /, *more: Weighted, into: Folder = Path("data/raw/models/merged")) -> int:
    """Merge adapters into their base with weights.

    Writes the base model plus a weighted sum of low-rank adapters, as an ordinary model.

    Args:
        base: The model that the adapters were trained on.
        adapter: An adapter and its weight, such as adapters/sort=0.5.
        more: More of them.
        into: Where the model is written.
    """
    from tasks.lib.finetuning.adapter_merging import merge_adapters
    from tasks.lib.stage import Problem

    weights: dict[Path, float] = {}
    for word in (adapter, *more):
        folder, _, weight = word.rpartition("=")
        try:
            weights[Path(folder)] = float(weight)
        except ValueError:
            raise Problem(f"{word}: expected FOLDER=WEIGHT, such as adapters/sort=0.5") from None
    merge_adapters(base, weights, into)
    print(f"{into}: {base} and {len(weights)} adapters")
    return 0


@app.command
def params() -> int:
    """Validate every section of params.yaml.

    Unknown keys and sections, wrong types and values are named, a line each.
    """
    from flows import params

    params.check()
    print("params.yaml: every section is valid")
    return 0


@app.command
def annotate(
    *,
    annotator: Annotated[Name, Parameter(name="--as")],
    candidates: File = Path("data/candidates/candidates.parquet"),
    into: Folder = Path("data/raw/rankings"),
    port: Count = 4300,
) -> int:
    """Rank answers on a page in the browser.

    The page is served on loopback for one person; each ranking is saved at once.

    Args:
        annotator: Who ranks.
        candidates: The answers to rank.
        into: Where the rankings are saved.
        port: Where the page is served.
    """
    from tasks.lib.annotation.page import serve

    serve(candidates, annotator, into, port)
    return 0


@app.command
def score(
    file: Annotated[str, Parameter(metavar="FILE", allow_leading_hyphen=True)] = "-",
    /,
    *,
    model: Folder = Path("models/reward"),
    accuracy: bool = False,
) -> int:
    """Print rewards of prompts with answers, as JSON lines.

    Rows are {prompt, answer} or {prompt, answers}. A reward has mean 0 and deviation 1 on answers of the SFT model.

    Args:
        file: JSONL, JSON, CSV or Parquet; - is standard input.
        model: The reward model.
        accuracy: Of a file of preferences: pairs ordered right, by source.
    """
    import json

    from tasks.lib.reward.scoring import accuracy as accuracy_by_source
    from tasks.lib.reward.scoring import read_rows, scored

    if accuracy:
        for source, (share, pairs) in accuracy_by_source(model, Path(file)).items():
            print(f"{share:.3f}  {pairs:6} pairs  {source}")
        return 0
    for row in scored(model, read_rows(file)):
        print(json.dumps(row, ensure_ascii=False))
    return 0


@app.command
def plan(
    *targets: Stage,
    device: Name = "cpu",
    preset: tuple[File, ...] = (),
    config: File | None = None,
) -> int:
    """Print the memory, time and disk that each stage needs.

    Nothing is loaded and nothing is run. The exit status is 1 when a stage does not fit the device.

    Args:
        targets: Only these stages.
        device: cpu (this machine), rtx4090, h100, ...
        preset: With this preset laid over params.yaml; a further one over that.
        config: config.json of a Hub model.
    """
    from flows import plan_table, presets
    from flows.plan import config_of
    from tasks.lib.stage import PARAMS_FILE, read_yaml

    document = presets.laid(read_yaml(PARAMS_FILE), preset)
    plan_table.show(document, targets, device, config or config_of(preset))
    return 0


@app.command
def ui() -> int:
    """Look at past runs: a Prefect server on loopback until Ctrl-C."""
    from flows import server, workspace

    with workspace.held():
        process, url = server.start(pages=True, services=True)
        with server.stopped(process):
            server.ready(process, url)
            print(f"{url.removesuffix('/api')}   (Ctrl-C ends it)", flush=True)
            return process.wait()


@app.command
def completion(shell: Literal["bash", "zsh", "fish"], /) -> int:
    """Print a script that teaches a shell to complete `anneal`.

    bash: eval "$(anneal completion bash)"
    zsh:  anneal completion zsh > _anneal, in a folder of $fpath
    fish: anneal completion fish | source

    Args:
        shell: The shell that reads the script.
    """
    print(app.generate_completion(shell=shell))
    return 0


if __name__ == "__main__":
    main()
