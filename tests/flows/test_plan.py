"""`anneal plan`: figures from params.yaml alone, a refusal of what does not fit, clear mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flows import cli, gpu, graph, local_run, params, server
from flows import plan as planned
from flows.graph import Graph, Node
from flows.local_run import Request, refuse_oversize
from flows.memory import FREE, Device
from tasks.lib.stage import Problem, read_yaml

ROOT = Path(__file__).resolve().parents[2]
CPU = Device(1e12, 1e12, is_gpu=False)


def plan(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.chdir(ROOT)
    cli.main(["plan", *arguments])


def test_the_demo_fits_this_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        plan(monkeypatch)
    assert not end.value.code
    out = capsys.readouterr().out
    assert "memory, FLOPs and time of one cpu" in out
    assert [line.split()[0] for line in out.splitlines()[2:12]] == [
        "base", "sft", "sample", "reward", "dpo", "ppo", "evaluate", "distill", "quantize", "release"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "abacus"], "--device abacus: unknown device; choose one of cpu, rtx4090"),
        (["sff"], "there is no plan for sff; stages with a plan: base, sft"),
        (["--config", "README.md"], "README.md: not a config.json"),
    ],
)
def test_a_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        plan(monkeypatch, *arguments)


def test_a_hub_model_without_its_config_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    preset = tmp_path / "hub.yaml"
    preset.write_text("base: {model: some/model}\n")
    with pytest.raises(SystemExit, match=r"some/model is not on this machine; name its config\.json"):
        plan(monkeypatch, "--preset", str(preset))


def test_presets_of_a_plan_are_laid_over_in_their_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    wide, deep = tmp_path / "wide.yaml", tmp_path / "deep.yaml"
    wide.write_text("base: {tiny: {vocab_size: 2048, hidden: 256, layers: 1}}\n")
    deep.write_text("base: {tiny: {layers: 2}}\n")
    with pytest.raises(SystemExit):
        plan(monkeypatch, "base", "--preset", str(wide), "--preset", str(deep))
    embedding, layer = 2048 * 256, 4 * 256 * 256 + 3 * 256 * 384 + 2 * 256
    assert f"{embedding + 2 * layer + 256:,} parameters" in capsys.readouterr().out


def test_eight_billion_in_four_bits_fit_24_gb_and_ppo_of_them_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = ["--preset", "presets/llama-8b-qlora.yaml", "--config", "presets/llama-8b-qlora/config.json"]
    with pytest.raises(SystemExit) as end:
        plan(monkeypatch, "sft", *preset, "--device", "rtx4090")
    assert not end.value.code
    with pytest.raises(SystemExit, match=r"ppo needs \d+\.\d GB, the device has 22\.1 GB"):
        plan(monkeypatch, "sft", "ppo", *preset, "--device", "rtx4090")


@pytest.mark.parametrize("preset", ["llama-8b-lora", "qwen-8b"])
def test_all_stages_of_eight_billion_fit_80_gb_and_leave_less_than_60_on_the_disk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], preset: str
) -> None:
    with pytest.raises(SystemExit) as end:
        plan(monkeypatch, "--preset", f"presets/{preset}.yaml", "--device", "a100-80")
    assert not end.value.code
    said = re.search(r"disk: [\d.]+ GB at the end, at most ([\d.]+) GB", capsys.readouterr().out)
    assert said is not None and float(said[1]) < 60


@pytest.mark.parametrize("preset", ["smollm2", "smollm2-135m"])
def test_135_million_fit_24_gb(monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    with pytest.raises(SystemExit) as end:
        plan(monkeypatch, "--preset", f"presets/{preset}.yaml", "--config", "presets/smollm2-135m/config.json",
             "--device", "rtx4090")  # fmt: skip
    assert not end.value.code


def test_70_billion_spread_over_eight_fit_80_gb_each_and_not_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    preset = ROOT / "presets" / "llama-70b-fsdp2.yaml"
    with pytest.raises(SystemExit) as end:
        plan(monkeypatch, "sft", "--preset", str(preset), "--device", "h100")
    assert not end.value.code
    out = capsys.readouterr().out
    assert "70,553,706,496 parameters" in out
    assert "sft: 8 devices, sharded as by ZeRO 3" in out
    assert "times rest on assumed speeds" in out
    alone = tmp_path / "alone.yaml"
    alone.write_text(
        preset.read_text().replace("accelerate launch --config_file configs/fsdp2.yaml --num_processes 8", "python")
    )
    with pytest.raises(SystemExit, match=r"sft needs \d+\.\d GB, the device has 73\.6 GB"):
        plan(monkeypatch, "sft", "--preset", str(alone), "--device", "h100",
             "--config", "presets/llama-70b-fsdp2/config.json")  # fmt: skip


def test_the_plan_of_the_reward_model_follows_its_method() -> None:
    params = read_yaml(ROOT / "params.yaml")
    shape = planned.shape_of(planned.read_sections(params).base, None)
    training = {}
    for method in ("full", "lora", "head"):
        params["reward"] |= {"method": method, "lora": {"r": 4} if method == "lora" else {}}
        training[method] = planned.needs(planned.read_sections(params), shape, CPU)["reward"].training
    assert training["full"] == 12 * shape.parameters
    assert training["lora"] == 12 * 4 * shape.in_and_out
    assert training["head"] == 0


@pytest.mark.parametrize("stage", ["dpo", "ppo"])
def test_adapters_with_the_default_fields_are_planned_as_adapters(stage: str) -> None:
    params = read_yaml(ROOT / "params.yaml")
    shape = planned.shape_of(planned.read_sections(params).base, None)
    params["ppo"]["critic"] = "policy"
    params[stage]["lora"] = {}
    needs = planned.needs(planned.read_sections(params), shape, CPU)
    assert needs[stage].training == 12 * 8 * shape.in_and_out


def test_what_does_not_fit_is_refused_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(gpu, "memory", lambda: 1e6 / FREE)
    with pytest.raises(Problem, match=r"sft needs .* the device has 1\.0 MB\nno stage was started"):
        refuse_oversize(Request(), {"sft"})
    refuse_oversize(Request(oversize=True), {"sft"})
    refuse_oversize(Request(device="h200"), {"sft"})


def test_a_stage_before_the_target_that_does_not_fit_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """`anneal run release`: dpo is started as well, unless it is up to date."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(gpu, "memory", lambda: 1e6 / FREE)
    nodes = {
        "dpo": Node("dpo", "python -m tasks.dpo", (), ()),
        "release": Node("release", "python -m tasks.release", ("dpo",), ()),
    }
    changed = Graph(nodes, {"dpo": ["params.yaml: dpo.lora"], "release": []})
    unchanged = Graph(nodes, {"dpo": [], "release": ["export deleted"]})
    request = Request(("release",))
    with pytest.raises(Problem, match=r"^dpo needs .* the device has 1\.0 MB\nno stage was started"):
        refuse_oversize(request, changed.may_run(force=False))
    refuse_oversize(request, unchanged.may_run(force=False))
    with pytest.raises(Problem, match=r"^dpo needs"):
        refuse_oversize(request, unchanged.may_run(force=True))


def test_a_run_asks_for_all_stages_that_it_may_start(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {"dpo": Node("dpo", "", (), ()), "release": Node("release", "", ("dpo",), ())}
    asked: list[set[str]] = []
    monkeypatch.setattr(server, "given", lambda: "http://127.0.0.1:1/api")
    monkeypatch.setattr(params, "check", lambda: None)
    monkeypatch.setattr(graph, "read_graph", lambda targets: Graph(nodes, {"dpo": ["changed"], "release": []}))
    monkeypatch.setattr(local_run, "refuse_oversize", lambda _, starting: asked.append(starting))
    monkeypatch.setattr(local_run, "_call_flow", lambda *_: None)
    local_run._run_flow(Request(("release",)), lock=0)
    assert asked == [{"dpo", "release"}]
