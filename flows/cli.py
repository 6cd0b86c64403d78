"""The command `anneal`: run the line, ask what would run, check a file, rank answers, score them, verify."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows import telemetry


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and run one command. A user's mistake is one line on standard error and exit status 1."""
    telemetry.switch_off()
    options = _parser().parse_args(arguments)
    from tasks.lib.stage import Problem

    try:
        sys.exit(options.command(options))
    except Problem as problem:
        sys.exit("\n".join(f"anneal: {line}" for line in str(problem).splitlines()))
    except KeyboardInterrupt:
        print("anneal: stopped; run it again to go on from the last checkpoints", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `anneal status | head`
        sys.exit(0)
    except OSError as error:
        full = "the disk is full: make room, then run it again" if error.errno == errno.ENOSPC else error.strerror
        sys.exit(f"anneal: {error.filename or 'writing'}: {full}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("anneal", description="Post-training: from a base model to a release.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="bring every stage up to date", description=_run.__doc__)
    run.add_argument("targets", nargs="*", metavar="STAGE", help="only these and what they depend on")
    run.add_argument("--stage", action="append", default=[], metavar="STAGE", help="the same, as an option")
    run.add_argument("--preset", type=Path, metavar="FILE", help="lay presets/x.yaml over the committed params.yaml")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one parameter")
    run.add_argument("--keep", action="store_true", help="lay them over uncommitted changes in params.yaml")
    run.add_argument("--force", action="store_true", help="run unchanged stages too")
    run.add_argument("--device", metavar="NAME", help="refuse what does not fit it; a GPU that is here is known")
    run.add_argument("--oversize", action="store_true", help="start what the plan says does not fit")
    run.add_argument("--parallel", type=int, default=2, metavar="N", help="stages side by side (default 2)")
    run.add_argument("--retries", type=int, default=0, metavar="N", help="new tries of a stage that crashed")
    run.set_defaults(command=_run)

    status = commands.add_parser("status", help="what would run, and why", description=_status.__doc__)
    status.add_argument("targets", nargs="*", metavar="STAGE")
    status.set_defaults(command=_status)

    check = commands.add_parser("check", help="check a file of rows against a contract")
    check.add_argument("file", type=Path)
    check.add_argument("--contract", required=True, metavar="NAME")
    check.set_defaults(command=_check)

    render = commands.add_parser("render", help="print what the templates make", description=_render.__doc__)
    render.add_argument("--show", type=int, default=5, metavar="N", help="examples to print (default 5)")
    render.set_defaults(command=_render)

    verify = commands.add_parser("verify", help="compare a release or model folder with its manifest")
    verify.add_argument("folder", type=Path)
    verify.set_defaults(command=_verify)

    merge = commands.add_parser("merge", help="merge adapters into their base with weights", description=_merge.__doc__)
    merge.add_argument("base", type=Path, help="folder of the model that the adapters were trained on")
    merge.add_argument("adapters", nargs="+", metavar="FOLDER=WEIGHT", help="such as adapters/sort=0.5")
    merge.add_argument("--into", type=Path, default=Path("data/raw/models/merged"), metavar="FOLDER")
    merge.set_defaults(command=_merge)

    params = commands.add_parser("params", help="validate every section of params.yaml")
    params.set_defaults(command=_params)

    annotate = commands.add_parser(
        "annotate", help="rank answers on a page in the browser", description=_annotate.__doc__
    )
    annotate.add_argument("--as", dest="annotator", required=True, metavar="NAME", help="who ranks")
    annotate.add_argument("--candidates", type=Path, default=Path("data/candidates/candidates.parquet"), metavar="FILE")
    annotate.add_argument("--into", type=Path, default=Path("data/raw/rankings"), metavar="FOLDER")
    annotate.add_argument("--port", type=int, default=4300)
    annotate.set_defaults(command=_annotate)

    score = commands.add_parser(
        "score", help="rewards of prompts with answers, as JSON lines", description=_score.__doc__
    )
    score.add_argument("file", nargs="?", default="-", help="JSONL, JSON, CSV, Parquet; - is standard input")
    score.add_argument("--model", type=Path, default=Path("models/reward"), metavar="FOLDER")
    score.add_argument(
        "--accuracy", action="store_true", help="of a file of preferences: pairs ordered right, by source"
    )
    score.set_defaults(command=_score)

    plan = commands.add_parser("plan", help="memory, time and disk of each stage", description=_plan.__doc__)
    plan.add_argument("targets", nargs="*", metavar="STAGE", help="only these")
    plan.add_argument("--device", default="cpu", metavar="NAME", help="cpu (this machine), rtx4090, h100, ...")
    plan.add_argument("--preset", type=Path, metavar="FILE", help="with this preset laid over params.yaml")
    plan.add_argument("--config", type=Path, metavar="FILE", help="config.json of a Hub model")
    plan.set_defaults(command=_plan)

    pages = commands.add_parser("ui", help="look at past runs: a Prefect server on loopback until Ctrl-C")
    pages.set_defaults(command=_ui)
    return parser


def _run(options: argparse.Namespace) -> int:
    """Bring every stage of dvc.yaml up to date, as `dvc repro` does, side by side and with lineage."""
    from flows import child, graph, outcome, params, presets, server, summary, warm, workspace
    from tasks.lib.stage import Problem

    if options.parallel < 1 or options.retries < 0:
        raise Problem("--parallel needs at least 1, --retries at least 0")
    workspace.check()
    signal.signal(signal.SIGTERM, _interrupted)  # ends like Ctrl-C: children stopped, the record written
    with workspace.held() as lock:
        for line in presets.lay_over(options.preset, options.set, options.keep):
            print(f"params.yaml  {line}")
        _refuse_oversize(options)
        outcome.FILE.unlink(missing_ok=True)
        arguments = {
            "targets": [*options.targets, *options.stage],
            "force": options.force,
            "parallel": options.parallel,
            "retries": options.retries,
        }
        with contextlib.ExitStack() as stack:
            if not (url := server.given()):
                process, url = server.start()
                stack.enter_context(server.stopped(process))
                print("anneal: a Prefect server starts; longest the first time", flush=True)
            # While the server starts: mistakes are found, libraries imported
            params.check()
            read = graph.read_graph(arguments["targets"])
            if warm.is_wanted(read, options.force):
                stack.enter_context(child.warm(lock))
            from flows import post_training

            if server.is_temporary():
                server.ready(process, url)
            post_training.READ[:] = [read]
            _run_flow(arguments, url)
        summary.show(outcome.read())
    states = {entry["state"] for entry in outcome.read()["stages"].values()}
    return 130 if "Cancelled" in states else 1 if "Failed" in states else 0


def _refuse_oversize(options: argparse.Namespace) -> None:
    """Problem when a stage of this run needs more memory than the device has; without a GPU nobody is asked."""
    from flows import gpu

    size = gpu.memory()
    if not options.device and size is None:
        return  # before plan imports torch
    from flows import plan
    from tasks.lib.stage import PARAMS_FILE, Problem, read_yaml

    document = read_yaml(PARAMS_FILE)
    if options.device:
        device, on_gpu = plan.device_of(options.device, document["threads"])
    elif size:
        device, on_gpu = plan.Device(size * plan.FREE, 1.0), True  # its speed is not known
    wanted = [*options.targets, *options.stage]
    found = plan.too_large(document, device, on_gpu, plan.config_of(options.preset))
    found = [line for line in found if not wanted or line.split()[0] in wanted]
    if found and not options.oversize:
        raise Problem(
            "\n".join([*found, "nothing was started; anneal plan shows the table, --oversize starts all the same"])
        )


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def _run_flow(arguments: dict[str, Any], url: str) -> None:
    """Run the flow in this process. A server that dies on the way does not undo what the stages did."""
    from flows import outcome
    from flows.post_training import post_training
    from tasks.lib.stage import Problem

    try:
        state = post_training(**arguments, return_state=True)
    except Exception as error:
        said = f"the Prefect server at {url} does not answer ({str(error).splitlines()[0][:120] or error!r})"
        if not outcome.FILE.exists():
            raise Problem(f"{said}; nothing was run") from None
        print(f"anneal: {said}; the stages went on without it", file=sys.stderr)
        return
    if not outcome.FILE.exists():
        raise Problem(str(state.message))


def _status(options: argparse.Namespace) -> int:
    """Print what `anneal run` would run and why. A stage behind another may turn out to be unchanged."""
    from flows import workspace
    from flows.graph import read_graph

    workspace.check()
    graph = read_graph(options.targets)
    width = max(map(len, graph.nodes), default=0)
    waiting: set[str] = set()
    for name, node in graph.nodes.items():
        behind = [above for above in node.upstream if above in waiting]
        reasons = [*graph.changes[name][:3], *(["..."] if len(graph.changes[name]) > 3 else [])]
        if behind or reasons:
            waiting.add(name)
        if reasons:
            print(f"{name:{width}}  runs     {'; '.join(reasons)}")
        elif behind:
            print(f"{name:{width}}  may run  behind {', '.join(behind)}")
        else:
            print(f"{name:{width}}  unchanged")
    return 0


def _check(options: argparse.Namespace) -> int:
    """Check the rows of a file against one of the data contracts."""
    from data_contracts.contract import check_rows
    from tasks.lib.stage import Problem

    report = check_rows(options.contract, [options.file])
    if problem := report.problem():
        raise Problem(f"{options.file}: {problem}")
    print(f"{options.file}: {len(report.results)} claims of {options.contract} hold for {report.rows} rows")
    return 0


def _render(options: argparse.Namespace) -> int:
    """Print rendered examples, what is trained in [[ ]]: as tokens where models/base is there. Writes nothing."""
    from tasks.lib.stage import read_params
    from tasks.render import Params, examples

    params, _ = read_params("render", Params)
    rows = examples(params, options.show)
    base = Path("models/base")
    if base.is_dir():
        from tasks.lib.models.chat import example_ids, load_tokenizer, preview

        tokenizer = load_tokenizer(base)
    for row in rows:
        print(f"--- {row['split']}  {row['source']}  {row['template']}")
        if base.is_dir():
            ids, is_trained = example_ids(tokenizer, row["messages"], row["answer"])
            print(preview(tokenizer, ids, is_trained))
            print(f"({len(ids)} tokens, {sum(is_trained)} of them trained)")
        else:
            print("\n".join(f"{message['role']}: {message['content']}" for message in row["messages"]))
            print(f"[[{row['answer']}]]")
    return 0


def _verify(options: argparse.Namespace) -> int:
    """Compare every file of a folder with the folder's manifest of hashes."""
    from tasks.lib.export.manifest import verify

    manifest = verify(options.folder)
    print(f"{options.folder}: all {len(manifest['files'])} files are as its manifest says")
    return 0


def _merge(options: argparse.Namespace) -> int:
    """Write the base model plus a weighted sum of low-rank adapters, as an ordinary model."""
    from tasks.lib.finetuning.adapter_merging import merge_adapters
    from tasks.lib.stage import Problem

    weighted: dict[Path, float] = {}
    for given in options.adapters:
        folder, _, weight = given.rpartition("=")
        try:
            weighted[Path(folder)] = float(weight)
        except ValueError:
            raise Problem(f"{given}: expected FOLDER=WEIGHT, such as adapters/sort=0.5") from None
    merge_adapters(options.base, weighted, options.into)
    print(f"{options.into}: {options.base} and {len(weighted)} adapters")
    return 0


def _annotate(options: argparse.Namespace) -> int:
    """Serve a page on loopback on which one person ranks answers; each ranking is saved at once."""
    from tasks.lib.annotation.page import serve

    serve(options.candidates, options.annotator, options.into, options.port)
    return 0


def _score(options: argparse.Namespace) -> int:
    """Score rows {prompt, answer} or {prompt, answers} with a reward model: mean 0, deviation 1 on answers of
    the SFT model."""
    import json

    from tasks.lib.reward.scoring import accuracy, read_rows, scored

    if options.accuracy:
        for source, (share, pairs) in accuracy(options.model, Path(options.file)).items():
            print(f"{share:.3f}  {pairs:6} pairs  {source}")
        return 0
    for row in scored(options.model, read_rows(options.file)):
        print(json.dumps(row, ensure_ascii=False))
    return 0


def _params(options: argparse.Namespace) -> int:
    """Validate params.yaml: unknown keys and sections, wrong types and values."""
    from flows import params

    params.check()
    print("params.yaml: every section is valid")
    return 0


def _plan(options: argparse.Namespace) -> int:
    """Print what each stage will need on a device, before anything runs. Status 1 when something does not fit."""
    from flows import plan, presets
    from tasks.lib.stage import PARAMS_FILE, Problem, read_yaml

    document = read_yaml(PARAMS_FILE)
    if options.preset:
        document = presets.laid(document, options.preset)
    device, on_gpu = plan.device_of(options.device, document["threads"])
    shape = plan.shape_of(document, options.config or plan.config_of(options.preset))
    found = plan.needs(document, shape, on_gpu)
    if unknown := [target for target in options.targets if target not in found]:
        raise Problem(f"no plan for {unknown[0]}; the stages with one: {', '.join(found)}")
    chosen = {name: need for name, need in found.items() if not options.targets or name in options.targets}
    lines, too_large = plan.lines_of(chosen, device, on_gpu)
    print(f"{shape.parameters:,} parameters; memory, FLOPs and time of one {options.device}")
    print("\n".join(lines))
    for name, launch in plan.launches(document).items():
        if launch.processes > 1 and name in chosen:
            print(f"{name}: {launch.processes} devices, as ZeRO {launch.zero} shares out")
    print("times rest on assumed speeds: a GPU at 0.35 of its data sheet, a CPU thread at 60 GFLOPS")
    if too_large:
        raise Problem("\n".join(too_large))
    return 0


def _ui(options: argparse.Namespace) -> int:
    """Serve the Prefect pages over the runs that temporary servers recorded in this workspace."""
    from flows import server, workspace

    with workspace.held():
        process, url = server.start(pages=True, services=True)
        with server.stopped(process):
            server.ready(process, url)
            print(f"{url.removesuffix('/api')}   (Ctrl-C ends it)", flush=True)
            return process.wait()


if __name__ == "__main__":
    main()
