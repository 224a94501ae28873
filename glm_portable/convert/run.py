"""A conversion from folder to folder that can be stopped and taken up again at any moment.

Files grow in `OUTPUT.partial`, beside a record of those that are finished, with their sizes and
checksums. The folder gets its name when everything is in it, so that OUTPUT is whole or not there.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from glm_portable import hub, modelslim
from glm_portable.config import ModelConfig
from glm_portable.convert import plan
from glm_portable.convert.write import ShardWriter, checksum
from glm_portable.errors import UsageError
from glm_portable.formats import TARGETS, W8A8, stored_format
from glm_portable.shards import INDEX_FILE
from glm_portable.stored import check_router_biases, open_stored

RECORD = "conversion.json"
SHARD_BYTES = 5_000_000_000
SPARE = 100_000_000
"""Bytes that have to stay free on the disk beside the result."""


class Conversion:
    """One checkpoint in another format. Opening it reads headers and refuses what cannot be done.

    output: must not exist. quantization: "w8a8" or "bf16". shard_bytes: of one file at most, unless
    a single tensor is larger. router_bias_from: the original, if this one lost its router biases.
    """

    def __init__(
        self,
        folder: Path,
        output: Path,
        quantization: str,
        *,
        shard_bytes: int = SHARD_BYTES,
        router_bias_from: Path | None = None,
    ) -> None:
        self.folder, self.output, self.quantization = folder, output, quantization
        if quantization not in TARGETS:
            raise UsageError(f"quantization {quantization!r} is not one of {', '.join(TARGETS)}.")
        if shard_bytes < 1:
            raise UsageError(f"files of {shard_bytes} bytes cannot hold a tensor; allow more.")
        _check_output(folder, output)
        self.partial = output.with_name(f"{output.name}.partial")
        self.config = ModelConfig.load(folder)
        if stored_format(self.config) == quantization:
            raise UsageError(f"{folder} is {quantization} already: there is nothing to convert.")
        self.entries, _ = open_stored(folder, self.config, router_bias_from)
        check_router_biases(folder, self.entries, self.config)
        self.parts = plan.parts(self.entries, self.config, quantization)
        self.files = plan.files(self.parts, shard_bytes)
        self.total_bytes = sum(part.nbytes for part in self.parts)

    def run(self, on_bytes: Callable[[int], None] = lambda count: None) -> int:
        """Write what is missing and put the folder in its place; returns how many files were there.

        on_bytes is called with sizes that add up to `total_bytes`. Raises UsageError.
        """
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.partial, os.O_RDONLY)
            try:
                return self._run_locked(lock, on_bytes)
            finally:
                os.close(lock)
        except OSError as error:
            raise UsageError(
                f"{error.filename or self.partial} cannot be written: {error.strerror}; "
                "the same command goes on where this one stopped."
            ) from None

    def _run_locked(self, lock: int, on_bytes: Callable[[int], None]) -> int:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process is writing {self.partial}: wait for it.") from None
        record = self._record()
        finished = self._verified(record["files"], on_bytes)
        self._check_space(finished)
        record["files"] = finished
        kept = len(finished)
        self._save(record)
        for name, parts in self.files.items():
            if name not in finished:
                finished[name] = self._write(name, parts, on_bytes)
                self._save(record)
        self._write_rest()
        self.partial.rename(self.output)
        (self.output / RECORD).unlink()
        return kept

    def _record(self) -> dict[str, Any]:
        """That of the run to go on with, or a new one."""
        path, new = self.partial / RECORD, self._new_record()
        if not path.exists():
            if any(p.name != f"{RECORD}.growing" for p in self.partial.iterdir()):
                raise UsageError(f"{self.partial} is in the way and no conversion: remove it.")
            return new
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            same = found | {"files": {}} == new and isinstance(found["files"], dict)
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise UsageError(
                f"{self.partial} was begun from other weights, with other options or by another "
                "version: repeat that command, or remove the folder."
            )
        return dict(found)

    def _new_record(self) -> dict[str, Any]:
        shards = {entry.shard.path.resolve(): entry.shard for entry in self.entries.values()}
        text = (self.folder / "config.json").read_bytes()
        return {
            "version": version("glm-portable"),
            "quantization": self.quantization,
            "config": hashlib.sha256(text).hexdigest(),
            "source": {
                str(path): [shard.size, path.stat().st_mtime_ns]
                for path, shard in sorted(shards.items())
            },
            "outputs": {name: [p.outputs[0].name for p in ps] for name, ps in self.files.items()},
            "files": {},
        }

    def _save(self, record: dict[str, Any]) -> None:
        _write_text(self.partial / RECORD, json.dumps(record))

    def _verified(
        self, recorded: dict[str, Any], on_bytes: Callable[[int], None]
    ) -> dict[str, Any]:
        """The finished files that are still what was written; anything else goes."""
        finished = {}
        for name, parts in self.files.items():
            path = self.partial / name
            if recorded.get(name) is not None and path.exists():
                if recorded[name] == [path.stat().st_size, checksum(path)]:
                    finished[name] = recorded[name]
                    on_bytes(sum(part.nbytes for part in parts))
        for path in self.partial.iterdir():
            if path.name not in finished and path.name != RECORD:
                path.unlink()
        return finished

    def _check_space(self, finished: dict[str, Any]) -> None:
        missing = (parts for name, parts in self.files.items() if name not in finished)
        needed = sum(part.nbytes for parts in missing for part in parts) + SPARE
        free = shutil.disk_usage(self.partial).free
        if needed > free:
            raise UsageError(
                f"{self.partial} needs {needed / 1e9:,.1f} GB, but its disk has {free / 1e9:,.1f} "
                "GB free: choose another disk or make room."
            )

    def _write(
        self, name: str, parts: list[plan.Part], on_bytes: Callable[[int], None]
    ) -> list[Any]:
        growing = self.partial / f"{name}.growing"
        ShardWriter(growing, parts, self.entries, self.config, on_bytes).write()
        entry = [growing.stat().st_size, checksum(growing)]
        growing.rename(self.partial / name)
        return entry

    def _write_rest(self) -> None:
        """Tokenizer, template and configuration; the index last."""
        for source in _other_files(self.folder):
            shutil.copyfile(source, self.partial / source.name)
        raw = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        kept = {k: v for k, v in raw.items() if k not in ("quantization_config", "quantize")}
        _write_text(self.partial / "config.json", json.dumps(kept, indent=2) + "\n")
        if self.quantization == W8A8:
            text = modelslim.description(plan.tags(self.parts))
            _write_text(self.partial / modelslim.FILE, text)
        weight_map = {
            output.name: name
            for name, parts in self.files.items()
            for part in parts
            for output in part.outputs
        }
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
        _write_text(self.partial / INDEX_FILE, json.dumps(index, indent=2) + "\n")


def _check_output(folder: Path, output: Path) -> None:
    if output.resolve() == folder.resolve():
        raise UsageError(f"{output} is the checkpoint itself: name another folder for the result.")
    if output.exists():
        raise UsageError(f"{output} exists already: name another folder, or remove it.")
    if not output.name or output.name == "..":
        raise UsageError(f"{str(output)!r} is no name for a new folder.")


def _other_files(folder: Path) -> list[Path]:
    """What belongs to a model beside weights and what describes them."""
    own = ("config.json", "*.safetensors*", "quant_model_description*")
    found = {path for pattern in hub.FILES for path in folder.glob(pattern)}
    return sorted(path for path in found if not any(path.match(pattern) for pattern in own))


def _write_text(path: Path, text: str) -> None:
    """Atomically, and on the disk when this returns."""
    growing = path.with_name(f"{path.name}.growing")
    with growing.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    growing.rename(path)
