"""`anneal plan`: figures from params.yaml alone, a refusal of what does not fit, clear mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import cli

ROOT = Path(__file__).resolve().parents[2]


def plan(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.chdir(ROOT)
    cli.main(["plan", *arguments])


def test_the_demo_fits_this_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        plan(monkeypatch)
    assert not end.value.code
    out = capsys.readouterr().out
    assert "parameters on one cpu" in out
    assert [line.split()[0] for line in out.splitlines()[2:]] == [
        "base", "sft", "sample", "reward", "dpo", "ppo"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "abacus"], "--device abacus: not known; one of cpu, rtx4090"),
        (["sff"], "no plan for sff; the stages with one: base, sft"),
        (["--preset", "presets/llama-8b-qlora.yaml"], "is not here; name its config.json"),
        (["--config", "README.md"], "README.md: not a config.json"),
    ],
)
def test_a_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        plan(monkeypatch, *arguments)


def test_eight_billion_in_four_bits_fit_24_gb_and_ppo_of_them_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = ["--preset", "presets/llama-8b-qlora.yaml", "--config", "presets/llama-8b-qlora/config.json"]
    with pytest.raises(SystemExit) as end:
        plan(monkeypatch, "sft", *preset, "--device", "rtx4090")
    assert not end.value.code
    with pytest.raises(SystemExit, match=r"ppo needs \d+\.\d GB, the device has 22\.1 GB"):
        plan(monkeypatch, "sft", "ppo", *preset, "--device", "rtx4090")


def test_135_million_fit_24_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as end:
        plan(monkeypatch, "--preset", "presets/smollm2-135m.yaml", "--config", "presets/smollm2-135m/config.json",
             "--device", "rtx4090")  # fmt: skip
    assert not end.value.code
