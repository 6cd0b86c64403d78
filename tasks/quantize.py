"""quantize: the student in the formats that its users load.

Reads   models/student
Writes  export/formats/<format> with export/formats/manifest.json, reports/quantize.json
Run     python -m tasks.quantize
"""

from __future__ import annotations

from pathlib import Path

import torch

from tasks.lib.export.gguf_file import read_gguf, write_gguf
from tasks.lib.export.manifest import write_manifest
from tasks.lib.export.quantisation import dequantised, quantised_bits, weight_error, write_bitsandbytes
from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.models.model_folder import replaced_folder
from tasks.lib.settings.quantize import Format, Params
from tasks.lib.stage import Stage, main


def run(params: Params, stage: Stage) -> None:
    # 1. Every format is made from the full-precision model, never from another format
    reference = {name: tensor.float().cpu() for name, tensor in load_policy(params.model).state_dict().items()}
    count = sum(tensor.numel() for tensor in _distinct(reference))
    figures: dict[str, float] = {"parameters": count}

    with replaced_folder(Path("export/formats")) as formats:
        for done, kind in enumerate(dict.fromkeys(params.formats), start=1):
            folder = formats / kind
            folder.mkdir()
            _write(kind, params, folder)

            # 2. What it costs and what it loses, read back from the file
            weights, file = _read(kind, folder)
            most, mean = weight_error(reference, weights)
            figures[f"{kind}.bytes"] = file.stat().st_size
            figures[f"{kind}.bits_per_weight"] = 8 * file.stat().st_size / count
            if kind in ("int8", "nf4"):
                figures[f"{kind}.bits_per_quantised_weight"] = quantised_bits(folder)
            figures[f"{kind}.max_weight_error"], figures[f"{kind}.mean_weight_error"] = most, mean
            stage.progress(done, len(params.formats), bytes=file.stat().st_size, max_weight_error=most)

        # 3. The release compares with this list before it believes a byte
        write_manifest(formats, formats=list(dict.fromkeys(params.formats)))
    stage.report(figures)


def _write(kind: Format, params: Params, folder: Path) -> None:
    if kind == "int8" or kind == "nf4":
        write_bitsandbytes(params.model, folder, kind, params.int8_threshold, params.keep)
        return
    model, tokenizer = load_policy(params.model), load_tokenizer(params.model)
    if kind.startswith("gguf-"):
        precision = kind.removeprefix("gguf-")
        file = folder / f"{params.name}-{precision}.gguf"
        for line in write_gguf(model, tokenizer, file, precision, params.name):
            print(f"quantize: {kind}: {line}", flush=True)
    else:
        save_model(model, tokenizer, folder, dtype=torch.bfloat16 if kind.endswith("bf16") else torch.float32)


def _read(kind: Format, folder: Path) -> tuple[dict[str, torch.Tensor], Path]:
    """The dequantised weights of a written format, and its file of weights."""
    if kind.startswith("gguf-"):
        (file,) = folder.glob("*.gguf")
        return dict(read_gguf(file)[0].state_dict()), file
    return dequantised(folder), folder / "model.safetensors"


def _distinct(tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Tensors without the second name of a tied embedding."""
    return list({tensor.data_ptr(): tensor for tensor in tensors.values()}.values())


if __name__ == "__main__":
    main(__file__, Params, run)
