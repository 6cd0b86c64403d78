"""quantize: the student in the formats that its users load.

Reads   models/student
Writes  export/formats/<format> with export/formats/manifest.json, reports/quantize.json
Run     python -m tasks.quantize
"""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import Tensor

from tasks.lib.export.formats import FORMATS
from tasks.lib.export.manifest import write_manifest
from tasks.lib.export.quantisation import weight_error
from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.models.model_folder import is_adapter, replaced_folder
from tasks.lib.models.precision import kept_dtype
from tasks.lib.settings.quantize import Params
from tasks.lib.stage import Stage, main


def run(params: Params, stage: Stage) -> None:
    # 1. Every format is made from the full-precision model, never from another format; an adapter is merged before
    params = params.model_copy(update={"model": merged_folder(params.model, stage)})
    reference = load_policy(params.model, on="cpu").state_dict()
    parameters = _parameters(reference)
    figures: dict[str, float] = {"parameters": parameters}
    names = list(dict.fromkeys(params.formats))  # each once

    with replaced_folder(Path("export/formats")) as export:
        for done, name in enumerate(names, start=1):
            folder = export / name
            folder.mkdir()
            for line in FORMATS[name].write(params, folder):
                print(f"quantize: {name}: {line}", flush=True)

            # 2. What it costs and what it loses, read back from the file
            costs = _costs(name, folder, reference, parameters)
            for key, value in costs.items():
                figures[f"{name}.{key}"] = value
            stage.progress(done, len(names), bytes=costs["bytes"], max_weight_error=costs["max_weight_error"])

        # 3. The release compares with this list before it believes a byte
        write_manifest(export, formats=names)
    stage.report(figures)
    shutil.rmtree(stage.checkpoints, ignore_errors=True)


def merged_folder(model: Path, stage: Stage) -> Path:
    """A folder with all weights of a model: its own, or a temporary one if it holds an adapter."""
    if not is_adapter(model):
        return model
    whole = stage.checkpoints / "model"
    save_model(load_policy(model, on="cpu"), load_tokenizer(model), whole, dtype=kept_dtype(model))
    return whole


def _costs(name: str, folder: Path, reference: dict[str, Tensor], parameters: int) -> dict[str, float]:
    size = FORMATS[name].weight_file(folder).stat().st_size
    costs: dict[str, float] = {"bytes": size, "bits_per_weight": 8 * size / parameters}
    quantised_bits = FORMATS[name].quantised_bits(folder)
    if quantised_bits is not None:
        costs["bits_per_quantised_weight"] = quantised_bits
    costs["max_weight_error"], costs["mean_weight_error"] = weight_error(reference, FORMATS[name].weights(folder))
    return costs


def _parameters(tensors: dict[str, Tensor]) -> int:
    """How many weights a model has; a tied embedding, which has two names, counts once."""
    sizes = {tensor.data_ptr(): tensor.numel() for tensor in tensors.values()}
    return sum(sizes.values())


if __name__ == "__main__":
    main(__file__, Params, run)
