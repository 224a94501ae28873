"""The safetensors files of a checkpoint folder: their headers, and reads straight into tensors.

Positional reads instead of safetensors' memory map: mapped pages count as resident memory for as
long as the map lives, and a reader that fills the final tensor needs no second copy. The format
(https://huggingface.co/docs/safetensors) is eight bytes of little-endian header length, a JSON
header, and the tensors' bytes without gaps.
"""

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from glm_portable.errors import UsageError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
HEADER_LIMIT = 100_000_000  # that of the safetensors library
# Converted at a time: too few for PyTorch to start threads below our own, and for the allocator to
# keep much of it.
STAGED_ELEMENTS = 1 << 15

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor on disk, or some rows and columns of it; `offset` counts bytes of the file.

    nbytes: of the whole tensor. pitch: numbers from the start of one row to that of the next, None
    where the rows lie one after the other.
    """

    name: str
    shard: "Shard"
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    pitch: int | None = None

    def part(self, rows: range, columns: range | None = None) -> "Entry":
        """These rows, and of a matrix these columns; all columns if None."""
        width = math.prod(self.shape[1:])
        pitch = self.pitch or width
        columns = range(width) if columns is None else columns
        return replace(
            self,
            shape=(len(rows), *((len(columns),) if len(self.shape) > 1 else ())),
            offset=self.offset + (rows.start * pitch + columns.start) * self.dtype.itemsize,
            pitch=None if len(columns) == pitch else pitch,
        )

    def read(self) -> Tensor:
        """The tensor as stored, on the host."""
        out = torch.empty(self.shape, dtype=self.dtype)
        self.read_into(out)
        return out

    def rows(self, begin: int, end: int) -> Tensor:
        """Rows `begin` to `end` of a matrix as stored, on the host.

        Of rows with a pitch the rest is read along: one call for many short pieces of a file.
        """
        width = math.prod(self.shape[1:])
        pitch = self.pitch or width
        lines = torch.empty((end - begin) * pitch, dtype=self.dtype)
        # Not behind the last number: another tensor, or the end of the file, may follow.
        wanted = lines[: (end - begin - 1) * pitch + width]
        self.shard.read_into(self.offset + begin * pitch * self.dtype.itemsize, wanted)
        return lines.view(-1, pitch)[:, :width].reshape(end - begin, *self.shape[1:]).contiguous()

    def read_into(self, out: Tensor) -> None:
        """Fill the contiguous `out`, of as many elements; converts (rounding once) and moves."""
        if self.pitch is not None:
            step = max(1, STAGED_ELEMENTS // math.prod(self.shape[1:]))
            for begin in range(0, len(out), step):
                end = min(begin + step, len(out))
                out[begin:end].copy_(self.rows(begin, end))
            return
        if out.device.type == "cpu" and out.dtype == self.dtype:
            self.shard.read_into(self.offset, out)
            return
        flat = out.view(-1)
        for begin in range(0, flat.numel(), STAGED_ELEMENTS):
            part = flat[begin : begin + STAGED_ELEMENTS]
            staged = torch.empty(part.shape, dtype=self.dtype)
            self.shard.read_into(self.offset + begin * self.dtype.itemsize, staged)
            part.copy_(staged)


class Shard:
    """One open safetensors file, its header checked against its size."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = path.open("rb")
            self.size = path.stat().st_size
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
        self.start, self.header = self._header()

    def read_into(self, offset: int, out: Tensor) -> None:
        """Fill the contiguous host tensor `out` with the bytes at `offset`."""
        rest = out.view(-1).view(torch.uint8).numpy().data
        while rest:
            try:
                count = os.preadv(self.file.fileno(), [rest], offset)
            except OSError as error:
                raise UsageError(f"{self.path} cannot be read: {error.strerror}.") from None
            if count == 0:
                self._corrupt(f"it ends at byte {offset}")
            rest, offset = rest[count:], offset + count

    def entries(self) -> list[Entry]:
        """What the header says is in the file, in the order of the bytes, without gaps."""
        entries = [self._entry(name, value) for name, value in self.header.items()]
        entries.sort(key=lambda e: (e.offset, e.nbytes))
        end = self.start
        for entry in entries:
            if entry.offset != end:
                self._corrupt(f"{entry.name} begins at byte {entry.offset} instead of {end}")
            end += entry.nbytes
        if end != self.size:
            self._corrupt(f"its header describes {end} bytes and it has {self.size}")
        return entries

    def _header(self) -> tuple[int, dict[str, Any]]:
        """Where the tensors' bytes begin, and the parsed header."""
        prefix = self.file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(self.size - 8, HEADER_LIMIT):
            self._corrupt(f"a header of {length} bytes does not fit into its {self.size} bytes")
        try:
            header = json.loads(self.file.read(length).decode("utf-8"))
        except (ValueError, RecursionError) as error:
            self._corrupt(f"its header is not valid JSON: {error}")
        if not isinstance(header, dict):
            self._corrupt("its header is not a JSON object")
        header.pop("__metadata__", None)
        return 8 + length, header

    def _entry(self, name: str, value: Any) -> Entry:
        try:
            kind, shape = str(value["dtype"]), tuple(value["shape"])
            begin, end = value["data_offsets"]
            numbers = [*shape, begin, end]
            sound = all(type(n) is int and n >= 0 for n in numbers) and begin <= end
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            self._corrupt(f"the header's entry of {name} is {str(value)[:80]}")
        if kind not in DTYPES:
            raise UsageError(
                f"{name} in {self.path} has dtype {kind}; {', '.join(DTYPES)} are supported."
            )
        dtype = DTYPES[kind]
        if math.prod(shape) * dtype.itemsize != end - begin:
            self._corrupt(f"{name} of shape {shape} and dtype {kind} has {end - begin} bytes")
        return Entry(name, self, dtype, shape, self.start + begin, end - begin)

    def _corrupt(self, why: str) -> NoReturn:
        raise UsageError(f"{self.path} is truncated or corrupt ({why}): download it again.")


def open_folder(folder: Path) -> dict[str, Entry]:
    """Every tensor of a checkpoint by name; only headers are read.

    That is model.safetensors or the files of the index, plus files beside them that the index does
    not list (MTP layers of other makers come so, and msmodelslim's single files have another name).
    Raises UsageError for a missing or corrupt file, an index that does not fit its files, or a
    tensor that two files hold.
    """
    index_file, index = _index(folder)
    listed = sorted(set(index.values()))
    if not listed and (folder / SINGLE_FILE).exists():
        listed = [SINGLE_FILE]
    entries: dict[str, Entry] = {}
    for file in listed:
        if not (folder / file).exists():
            raise UsageError(f"{folder / file}, listed in {index_file}, is missing: download it.")
        _add(entries, Shard(folder / file))
    for name, file in index.items():
        if name not in entries or entries[name].shard.path.name != file:
            raise UsageError(
                f"{folder / file} lacks {name}, which {index_file} says it holds: "
                "download both again."
            )
    for path in sorted(folder.glob("*.safetensors")):
        if path.name not in listed:
            _add_unlisted(entries, Shard(path))
    if not entries and not listed:
        raise UsageError(
            f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}: download the weights."
        )
    return entries


def _index(folder: Path) -> tuple[str, dict[str, str]]:
    """The index's file name, and tensor name -> file name; empty when there is no index."""
    path = _index_file(folder)
    if path is None:
        return "", {}
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = set(weight_map.values())
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} is not a safetensors index ({error!r}): download it again."
        ) from None
    # The index is foreign input: it must not name files outside its folder.
    if not files or any(not isinstance(f, str) or Path(f).name != f for f in files):
        raise UsageError(f"{path} must name files of its own folder: download it again.")
    return path.name, dict(weight_map)


def _index_file(folder: Path) -> Path | None:
    """model.safetensors.index.json, or the only other one (quant_model_weights... and the like)."""
    if (folder / INDEX_FILE).exists():
        return folder / INDEX_FILE
    found = sorted(folder.glob("*.safetensors.index.json"))
    if len(found) > 1:
        raise UsageError(
            f"{folder} has {len(found)} indexes ({found[0].name}, {found[1].name}) and none is "
            f"{INDEX_FILE}: keep the one that belongs to the weights."
        )
    return found[0] if found else None


def _add(entries: dict[str, Entry], shard: Shard) -> None:
    for entry in shard.entries():
        if entry.name in entries:
            raise UsageError(
                f"{entry.name} is in both {entries[entry.name].shard.path} and {shard.path}: "
                "remove the file that does not belong to the checkpoint."
            )
        entries[entry.name] = entry


def _add_unlisted(entries: dict[str, Entry], shard: Shard) -> None:
    """Leave alone what is no model (an adapter) or repeats all it holds (another layout)."""
    new = shard.header.keys() - entries.keys()
    if any(name.startswith(("model.", "lm_head.")) for name in new):
        _add(entries, shard)
    else:
        shard.file.close()
