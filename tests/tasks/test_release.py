"""Nothing is released that is beyond its bounds, was changed on the way, or may not be shipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sections import section
from tiny_models import instruction, write_model

from tasks import quantize, release
from tasks.lib.data.rows import INSTRUCTION, write_parquet
from tasks.lib.data.splits import TRAINING
from tasks.lib.export.manifest import verify, write_manifest
from tasks.lib.settings.release import Bounds
from tasks.lib.stage import Problem, Stage

LOOSE = {"max_logit_error": 1.0, "kl": 0.1, "agreement": 0.0, "exact_match_drop": 1.0}
EXACT = {"max_logit_error": 0.0, "kl": 0.0, "agreement": 1.0, "exact_match_drop": 0.0}
FORMATS = ["safetensors", "int8", "gguf-f16"]
PARAMS: dict[str, Any] = {
    "model": "models/student", "judge": "none", "rows_per_split": 6, "max_new_tokens": 4, "batch_size": 8,
    "bounds": {"safetensors": EXACT, "int8": LOOSE, "gguf-f16": LOOSE}, "licenses": ["CC0-1.0"],
    "card": {"name": "tiny", "license": "cc0-1.0", "base": "Made here.", "use": "Tests.",
             "limits": ["It is tiny."]},
}  # fmt: skip


@pytest.fixture
def inputs(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(release, "LINEAGE", {"distill": (Path("models/student"),)})
    monkeypatch.setattr(release, "REPORTS", (Path("reports/quantize.json"),))
    write_model(workspace / "models/student")
    rows = [instruction(number) for number in range(30)]
    for use in TRAINING:
        write_parquet(workspace / f"data/curated/{use}.parquet", rows[:10], INSTRUCTION)
    heldout = [row | {"split": split} for row, split in zip(rows[10:], ["rows", "templates"] * 10, strict=True)]
    write_parquet(workspace / "data/curated/evaluation.parquet", heldout, INSTRUCTION)
    (workspace / "params.yaml").write_text("distill: {layers: 2}\n")
    quantize.run(section("quantize", name="tiny", formats=FORMATS), Stage("quantize"))
    return workspace


def run(**changes: Any) -> dict[str, Any]:
    release.run(section("release", **PARAMS | changes), Stage("release"))
    return json.loads(Path("reports/release.json").read_text())


def test_a_release_holds_the_formats_a_card_and_a_manifest(inputs: Path) -> None:
    report = run()
    assert report["safetensors.max_logit_error"] == 0 and report["rows.rows"] == 6
    manifest = verify(Path("export/release"))
    assert {Path(name).parts[0] for name in manifest["files"]} == {*FORMATS, "README.md"}
    assert set(manifest["stages"]["distill"]["outs"]) == {"models/student"}
    assert manifest["metrics"]["quantize"]["parameters"] > 0 and manifest["license"] == "cc0-1.0"
    card = Path("export/release/README.md").read_text()
    assert card.startswith("---\nlicense:") and "| tiny | CC0-1.0 | 10 | 10 | 10 |" in card
    assert "It is tiny." in card and "gguf-f16/tiny-f16.gguf" in card
    before = {file: file.read_bytes() for file in Path("export/release").rglob("*") if file.is_file()}
    run()
    assert {file: file.read_bytes() for file in before} == before


def test_a_format_beyond_its_bounds_is_named_and_nothing_released(inputs: Path) -> None:
    bounds = PARAMS["bounds"] | {"int8": EXACT}
    with pytest.raises(Problem, match=r"beyond the bounds are int8: max_logit_error \S+ \(bound 0\)"):
        run(bounds=bounds)
    assert not Path("export/release").exists()


def test_where_tasks_have_measures_the_score_must_be_kept(inputs: Path) -> None:
    rows = [instruction(number) | {"split": "rows", "measure": "regex:."} for number in range(6)]
    write_parquet(Path("data/curated/evaluation.parquet"), rows, INSTRUCTION)
    report = run()
    assert report["int8.score_drop"] == 0 and "int8.exact_match_drop" not in report
    assert report["rows.score"] == report["safetensors.score"] >= report["rows.exact_match"]


def test_a_bound_on_the_exact_match_is_one_on_the_score_where_there_is_one() -> None:
    figures = {"max_logit_error": 0.0, "kl": 0.0, "agreement": 1.0, "exact_match": 0.0, "score_drop": 0.5}
    bounds = Bounds(**EXACT)
    assert bounds.broken_by(figures) == ["score_drop 0.5 (bound 0)"]
    assert bounds.broken_by(figures | {"score_drop": 0.0}) == []


def test_a_format_without_bounds_is_not_waved_through(inputs: Path) -> None:
    with pytest.raises(Problem, match=r"release.bounds has no bounds for the format int8"):
        run(bounds={"safetensors": EXACT})


def test_a_flipped_bit_in_an_export_is_found_before_it_is_read(inputs: Path) -> None:
    run()
    before = Path("export/release/manifest.json").read_bytes()
    file = Path("export/formats/int8/model.safetensors")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(Problem, match=r"int8/model.safetensors was changed"):
        run()
    assert Path("export/release/manifest.json").read_bytes() == before


def test_a_nan_in_an_export_with_a_true_manifest_is_found(inputs: Path) -> None:
    file = Path("export/formats/safetensors/model.safetensors")
    tensors = load_file(file)
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    write_manifest(Path("export/formats"), formats=FORMATS)
    with pytest.raises(Problem, match=r"safetensors: .*model.norm.weight holds NaN"):
        run()


def test_another_tokenizer_in_an_export_is_found(inputs: Path) -> None:
    file = Path("export/formats/int8/tokenizer.json")
    layout = json.loads(file.read_text())
    layout["model"]["merges"].pop()
    file.write_text(json.dumps(layout))
    write_manifest(Path("export/formats"), formats=FORMATS)
    with pytest.raises(Problem) as raised:
        run()
    assert str(raised.value) == (
        "not released: no bound allows int8: its tokenizer is not the model's; run quantize again, "
        "or leave the format out of quantize.formats"
    )


def test_a_source_without_a_listed_licence_is_not_released(inputs: Path) -> None:
    rows = [instruction(1) | {"license": "CC-BY-NC-4.0"}]
    write_parquet(Path("data/curated/preference.parquet"), rows, INSTRUCTION)
    with pytest.raises(Problem, match=r"rows of tiny have the licence CC-BY-NC-4.0"):
        run()


def test_an_artifact_of_the_lineage_that_is_not_there_is_named(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "LINEAGE", {"sft": (Path("models/sft"),)})
    with pytest.raises(Problem, match=r"models/sft does not exist"):
        run()
    assert not Path("export/release").exists()
