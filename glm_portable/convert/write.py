"""Writing one safetensors file of a converted checkpoint, and knowing later that it is whole."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from glm_portable.checkpoint import READERS
from glm_portable.config import ModelConfig
from glm_portable.convert.plan import Output, Part
from glm_portable.formats import to_int8, to_plain
from glm_portable.shards import DTYPES
from glm_portable.stored import Entries, linear

CODES = {dtype: code for code, dtype in DTYPES.items()}
CHUNK = 1 << 24
"""Bytes copied or hashed at a time."""


class ShardWriter:
    """Writes parts at their places in a file; a few at a time, each in a thread of its own."""

    def __init__(
        self,
        path: Path,
        parts: Sequence[Part],
        entries: Entries,
        config: ModelConfig,
        on_bytes: Callable[[int], None],
    ) -> None:
        self.path, self.parts, self.entries, self.config = path, parts, entries, config
        self.on_bytes = on_bytes
        header, self.offsets = layout([o for part in parts for o in part.outputs])
        self.header = header

    def write(self) -> None:
        """The whole file, on the disk when this returns. Raises OSError and UsageError."""
        with self.path.open("wb") as file:
            file.write(self.header)
            file.flush()
            pool = ThreadPoolExecutor(READERS)
            try:
                for part, _ in zip(
                    self.parts,
                    pool.map(lambda part: self._part(file.fileno(), part), self.parts),
                    strict=True,
                ):
                    self.on_bytes(part.nbytes)
            finally:
                pool.shutdown(cancel_futures=True)
            os.fsync(file.fileno())

    def _part(self, file: int, part: Part) -> None:
        if part.how == "copy":
            self._copy(file, part)
            return
        source, _ = linear(self.entries, part.source.removesuffix(".weight"), self.config)
        if part.how == "plain":
            plain = torch.empty(source.entry.shape, dtype=torch.bfloat16)
            to_plain(source, plain)
            tensors = [plain]
        else:
            data = torch.empty(source.entry.shape, dtype=torch.int8)
            scale, _ = to_int8(source, data)
            tensors = [data, scale, torch.zeros_like(scale)]
        for output, tensor in zip(part.outputs, tensors, strict=True):
            _write_all(file, tensor, self.offsets[output.name])

    def _copy(self, file: int, part: Part) -> None:
        entry, begin = self.entries[part.source], self.offsets[part.outputs[0].name]
        for done in range(0, entry.nbytes, CHUNK):
            chunk = torch.empty(min(CHUNK, entry.nbytes - done), dtype=torch.uint8)
            entry.shard.read_into(entry.offset + done, chunk)
            _write_all(file, chunk, begin + done)


def layout(outputs: Sequence[Output]) -> tuple[bytes, dict[str, int]]:
    """(the file up to its data, each tensor's offset from the start of the file).

    Wide types come first, so that every tensor is aligned to its own type.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins: dict[str, int] = {}
    end = 0
    for output in sorted(outputs, key=lambda o: -o.dtype.itemsize):
        begins[output.name] = end
        end += output.nbytes
        header[output.name] = {
            "dtype": CODES[output.dtype],
            "shape": list(output.shape),
            "data_offsets": [begins[output.name], end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {n: start + b for n, b in begins.items()}


def _write_all(file: int, tensor: Tensor, offset: int) -> None:
    rest = tensor.view(-1).view(torch.uint8).numpy().data
    while rest:
        count = os.pwrite(file, rest, offset)
        rest, offset = rest[count:], offset + count


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
