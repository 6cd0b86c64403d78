"""What every stage shares: its parameters, its report, its progress.

A stage module ends with `main(__file__, Params, run)`. `main` reads the stage's section of
params.yaml, seeds every generator, calls `run(params, stage)` and turns a `Problem` into one line.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

PARAMS_FILE = Path("params.yaml")
UNQUOTED = {  # YAML's message about a text that needs quotes: what to do
    "found unhashable key": "; put a text that begins with { in quotes",
    "mapping values are not allowed here": "; put a text that holds ': ' in quotes",
}
SHARED_KEYS = ("seed", "threads")  # keys of params.yaml that every stage reads
PRECISIONS = ("auto", "float32", "bfloat16")
TOP_KEYS = (*SHARED_KEYS, "precision")  # the only keys that are not a stage's section

P = TypeVar("P", bound=BaseModel)


class Problem(Exception):
    """Something the user can put right: what is wrong, where, what to do. One line per mistake, no traceback."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of one stage. All paths are relative to the workspace (the current folder)."""

    name: str
    seed: int = 0
    threads: int = 1
    precision: str = "auto"  # read by base alone: the other stages keep weights as models/base has them
    # when progress was printed last, in a list because the class is frozen
    _printed: list[float] = dataclasses.field(default_factory=lambda: [0.0], repr=False, compare=False)

    @property
    def checkpoints(self) -> Path:
        """Where a killed run is picked up again. Outside the stage's outs, which DVC deletes before a run."""
        return Path(".anneal") / "checkpoints" / self.name

    def seed_of(self, *words: object) -> int:
        """A seed in [0, 2**31) for one purpose, so that no two draws of a run share a stream."""
        text = "/".join(map(str, (self.seed, self.name, *words)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1

    def progress(self, step: int, total: int, **figures: float) -> None:
        """Print `step/total` and figures, at most every five seconds, always for the last step."""
        now = time.monotonic()
        if step < total and now - self._printed[0] < 5.0:
            return
        self._printed[0] = now
        shown = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
        print(f"{self.name}  {step}/{total}  {shown}".rstrip(), flush=True)

    def report(self, figures: Mapping[str, Any]) -> None:
        """Write the stage's flat figures to reports/<stage>.json. No timings: a report is reproducible."""
        for key, value in figures.items():
            if isinstance(value, (dict, list)):
                raise TypeError(f"reports are flat, but {self.name}.{key} is a {type(value).__name__}")
            if isinstance(value, float) and not math.isfinite(value):
                raise Problem(f"{self.name}: the figure {key} is {value}; the result is not usable")
        write_json(Path("reports") / f"{self.name}.json", {key: rounded(value) for key, value in figures.items()})


def rounded(value: Any) -> Any:
    """Six significant digits: enough to compare runs, few enough to read."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary name in the folder of `path`; rename it to `path` on success, remove it on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_yaml(path: Path) -> Any:
    """Read YAML 1.2 as DVC does (`2e-5` is a number); a duplicate key or an unknown tag is a Problem."""
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Problem(f"{path} does not exist; run this in the project's folder") from None
    except UnicodeDecodeError as error:
        raise Problem(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        reason = " ".join((error.problem or "not valid YAML").split())
        raise Problem(f"{where}: {reason}{UNQUOTED.get(reason, '')}") from None


def validated(name: str, Params: type[P], section: Any, where: Path = PARAMS_FILE) -> P:
    """Check one section against its model. Errors name file, stage, key, and the nearest right key.

    Without a name it is a whole file, such as a source.yaml.
    """
    if not isinstance(section, dict):
        found = None if section is None else type(section).__name__
        if name:
            raise Problem(f"{where}: {name}: expected a section of keys, found {found}")
        raise Problem(f"{where}: expected the keys {', '.join(_keys(Params))}, found {found}")
    try:
        return Params(**section)
    except ValidationError as error:
        raise Problem(f"{where}: {_first_mistake(name, Params, error)}") from None


def _first_mistake(name: str, Params: type[BaseModel], error: ValidationError) -> str:
    """The key and what is wrong with it, of the mistake that explains the others."""
    mistakes = error.errors()
    first = mistakes[0]
    for mistake in mistakes:
        if mistake["type"] == "extra_forbidden":  # a misspelt key is also a missing one: name the misspelling
            first = mistake
            break
    place = [str(part) for part in (name, *first["loc"])]
    key = ".".join(place).removeprefix(".")
    if first["type"] == "extra_forbidden":
        known = _keys(_model_at(Params, first["loc"][:-1]))
        hint = _nearest(str(first["loc"][-1]), known) or f"known keys: {', '.join(known)}"
        if name:
            return f"{key} is not a key of stage {name}; {hint}"
        return f"{key} is not a key; {hint}"
    if first["type"] == "missing":
        if name:
            return f"{key} is missing; the stage {name} needs it"
        return f"{key} is missing; every such file has one (docs/data.md)"
    if first["type"] == "value_error":  # a check across fields of tasks/lib/settings: its message begins with a key
        message = str(first["ctx"]["error"])
        return f"{key}.{message}" if key else message
    found = json.dumps(first["input"], default=str)[:80]
    return f"{key}: {first['msg'].lower()}, found {found}"


def known_keys(where: str, given: Mapping[str, Any], Config: type) -> dict[str, Any]:
    """`given`, when every key is a field of the dataclass `Config`; else a Problem naming the nearest key."""
    fields = [field.name for field in dataclasses.fields(Config) if field.init]
    for key in given:
        if key not in fields:
            mistake = f"params.yaml: {where}.{key} is not a key of {Config.__name__}"
            hint = _nearest(key, fields)
            raise Problem(f"{mistake}; {hint}" if hint else mistake)
    return dict(given)


def _nearest(key: str, known: Sequence[str]) -> str | None:
    """A question for the known key that is spelt most like `key`; None if none is."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    if not near:
        return None
    return f"did you mean {near[0]}?"


def _model_at(model: type[BaseModel], location: Sequence[Any]) -> type[BaseModel]:
    """The model of the section at `location` (keys, and places in lists) of a section of `model`."""
    for part in location:
        field = _fields(model).get(part)
        if field is None:  # a place in a list, or a name in a mapping
            continue
        for kind in (field.annotation, *get_args(field.annotation)):  # Model | None, list[Model], dict[str, Model]
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                model = kind
                break
    return model


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a model by their keys in a file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _keys(model: type[BaseModel]) -> list[str]:
    return sorted(_fields(model))


def read_params(name: str, Params: type[P], path: Path = PARAMS_FILE) -> tuple[P, Stage]:
    """The validated section of one stage, and the Stage made of the shared keys."""
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise Problem(f"{path}: expected sections, found {type(document).__name__}")
    if name not in document:
        raise Problem(f"{path}: the section {name} is missing")
    shared: dict[str, Any] = {}
    for key, least in zip(SHARED_KEYS, (0, 1), strict=True):
        value = document.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise Problem(f"{path}: {key}: expected a whole number of at least {least}, found {value!r}")
        shared[key] = value
    precision = document.get("precision", "auto")
    if precision not in PRECISIONS:
        raise Problem(f"{path}: precision: expected one of {', '.join(PRECISIONS)}, found {precision!r}")
    return validated(name, Params, document[name], path), Stage(name, precision=precision, **shared)


def main(file: str, Params: type[P], run: Callable[[P, Stage], None]) -> None:
    """Run the stage of this file from the shell. Exit status 1 on a Problem, 130 on Ctrl-C."""
    name = Path(file).stem
    try:
        params, stage = read_params(name, Params)
        _prepare(stage)
        run(params, stage)
    except Problem as problem:
        sys.exit(f"anneal: {problem}")
    except KeyboardInterrupt:
        print(f"anneal: {name}: stopped; run it again to continue from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        place, reason = error.filename or "writing", error.strerror or error
        sys.exit(f"anneal: {name}: {place}: {reason}; nothing earlier was changed")


def _prepare(stage: Stage) -> None:
    """Seed and limit the libraries that the stage imported. A stage that needs no torch does not pay for it."""
    random.seed(stage.seed_of("random"))
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(stage.seed_of("numpy"))
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.set_num_threads(stage.threads)
        torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms imports a compiler: seconds
        # filling every new tensor with NaN took a quarter of the SFT stage; nothing here reads one unfilled
        torch.utils.deterministic.fill_uninitialized_memory = False
        torch.manual_seed(stage.seed_of("torch"))
