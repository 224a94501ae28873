"""The lines of `tuned/<architecture>.json`: read with every fault named, written atomically.

    {"tiles": [{"E": 160, "N": 384, "K": 5120, "dtype": "fp8", "tokens": 16,
                "tile": {"block_m": 16, "block_n": 64, "block_k": 128, "group_m": 1,
                         "options": {"num_warps": 4, "num_stages": 2}},
                "source": {"device": "...", "torch": "...", "triton": "...", "date": "2026-01-31",
                           "median_us": 41.2, "rule_us": 47.9}}]}

N and K are a rank's own. dtype: bfloat16, fp8 (with FP8 activations) or w8a16 (with wider ones).
median_us, rule_us: of this tile and of the rule's in the same run.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_portable.errors import UsageError

DTYPES = ("bfloat16", "fp8", "w8a16")
SIZES = ("block_m", "block_n", "block_k")
OPTIONS = {
    "num_warps": (1, 2, 4, 8, 16),
    "num_stages": tuple(range(1, 9)),
    "matrix_instr_nonkdim": (16, 32),
    "waves_per_eu": tuple(range(9)),
}
TEXTS = ("device", "torch", "triton", "date")
TIMES = ("median_us", "rule_us")
KEYS = ("E", "N", "K", "dtype", "tokens", "tile", "source")


@dataclass(frozen=True)
class Line:
    """One measured choice. tile: the fields of `tiles.Tile`."""

    experts: int
    n: int
    k: int
    dtype: str
    tokens: int
    tile: dict[str, Any]
    source: dict[str, Any]

    @property
    def key(self) -> tuple[int, int, int, str, int]:
        """What it is looked up by, beside the architecture."""
        return self.experts, self.n, self.k, self.dtype, self.tokens


def read(path: Path) -> tuple[Line, ...]:
    """All lines of a file. Raises UsageError that names the file, the line and what is wrong."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("tiles"), list):
        raise UsageError(f'{path} must hold {{"tiles": [...]}}.')
    lines: dict[tuple[int, int, int, str, int], int] = {}
    found = []
    for number, entry in enumerate(raw["tiles"], 1):
        if fault := _fault(entry):
            raise UsageError(f"{path}: tile {number} {fault}; correct it, or tune it again.")
        line = Line(*(entry[key] for key in KEYS))
        if line.key in lines:
            first = lines[line.key]
            raise UsageError(f"{path}: tile {number} is for the same as tile {first}: remove one.")
        lines[line.key] = number
        found.append(line)
    return tuple(found)


def write(path: Path, lines: Iterable[Line]) -> None:
    """Replace a file by these lines, sorted; whoever reads it meanwhile sees the old or the new."""
    ordered = sorted(lines, key=lambda line: line.key)
    fields = ("experts", "n", "k", "dtype", "tokens", "tile", "source")
    entries = [
        json.dumps({key: getattr(line, name) for key, name in zip(KEYS, fields, strict=True)})
        for line in ordered
    ]
    text = '{"tiles": [\n' + ",\n".join(entries) + "\n]}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def merged(old: Sequence[Line], new: Sequence[Line]) -> list[Line]:
    """Old lines, those replaced that were measured again."""
    return list({line.key: line for line in (*old, *new)}.values())


def _fault(entry: Any) -> str | None:
    """What is wrong with a line, or None."""
    if fault := _keys(entry, KEYS, "is"):
        return fault
    for key in ("E", "N", "K", "tokens"):
        if not _positive(entry[key]):
            return f"has {key} {entry[key]!r}, which must be a positive integer"
    if entry["dtype"] not in DTYPES:
        return f"has dtype {entry['dtype']!r}, which is not one of {', '.join(DTYPES)}"
    return _tile_fault(entry["tile"]) or _source_fault(entry["source"])


def _tile_fault(tile: Any) -> str | None:
    if fault := _keys(tile, (*SIZES, "group_m", "options"), "has a 'tile' that is"):
        return fault
    for key in SIZES:
        size = tile[key]
        if not (_positive(size) and 16 <= size <= 512 and size & (size - 1) == 0):
            return f"has {key} {size!r}, which must be a power of two from 16 to 512"
    if not _positive(tile["group_m"]):
        return f"has group_m {tile['group_m']!r}, which must be a positive integer"
    options = tile["options"]
    if not isinstance(options, dict) or not {"num_warps", "num_stages"} <= options.keys():
        return "has 'options' without num_warps and num_stages"
    for key, value in options.items():
        if key not in OPTIONS:
            return f"has option {key!r}, which is not one of {', '.join(OPTIONS)}"
        if type(value) is not int or value not in OPTIONS[key]:
            return f"has {key} {value!r}, which is not one of {', '.join(map(str, OPTIONS[key]))}"
    return None


def _source_fault(source: Any) -> str | None:
    if fault := _keys(source, (*TEXTS, *TIMES), "has a 'source' that is"):
        return fault
    for key in TEXTS:
        if not (isinstance(source[key], str) and source[key]):
            return f"has source {key} {source[key]!r}, which must be a text"
    for key in TIMES:
        if not (isinstance(source[key], int | float) and source[key] > 0):
            return f"has source {key} {source[key]!r}, which must be microseconds"
    return None


def _keys(value: Any, keys: Sequence[str], what: str) -> str | None:
    if not isinstance(value, dict):
        return f"{what} no object"
    if missing := [key for key in keys if key not in value]:
        return f"{what} without {missing[0]!r}"
    if unknown := [key for key in value if key not in keys]:
        return f"{what} with {unknown[0]!r}, which nobody knows"
    return None


def _positive(value: Any) -> bool:
    return type(value) is int and value > 0
