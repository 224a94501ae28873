"""A golden file from a checkpoint: in memory, or in a folder that can be gone on with."""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from glm_portable.errors import UsageError
from glm_portable.shards import open_folder
from glm_portable.verify.golden.fingerprint import WIDTH
from glm_portable.verify.golden.make import Kept, Maker, Run
from glm_portable.verify.golden.record import FORMAT, Golden
from glm_portable.verify.metrics import FLOOR, K_TAIL, SLOPE, Distance, K
from glm_portable.verify.model.layers import WHOLE_SLOPE
from glm_portable.verify.subject import Subject

Prompts = Sequence[Sequence[int]]
SMALL = 1 << 30
"""Bytes of a checkpoint up to which all of it is hashed; of others, the headers of their files."""
STATE = "state.safetensors"


def in_memory(subject: Subject, prompts: Prompts, dtype: torch.dtype = torch.float64) -> Golden:
    """Made for one use."""
    maker = Maker(subject, prompts, dtype)
    maker.embed()
    for i in range(maker.config.num_hidden_layers):
        maker.layer(i)
    maker.finish()
    return _golden(maker.kept, prompts, provenance(subject, dtype))


def in_folder(
    subject: Subject,
    prompts: Prompts,
    dtype: torch.dtype,
    out: Path,
    texts: Sequence[str] | None = None,
    on_layer: Callable[[int, int], None] = lambda done, count: None,
) -> Golden:
    """Written layer by layer beside `out`, and named `out` at the end: a whole file or none.

    What an interrupted run has done is not done again. on_layer: called with layers done, of all.
    """
    if out.exists():
        raise UsageError(f"{out} is there already: give another folder to --out, or remove it.")
    about = provenance(subject, dtype) | ({} if texts is None else {"texts": list(texts)})
    work = out.with_name(f"{out.name}.partial")
    work.mkdir(parents=True, exist_ok=True)
    maker = Maker(subject, prompts, dtype)
    key = _key(about, prompts)
    done = _resume(maker, work, key)
    count = maker.config.num_hidden_layers
    if done == 0:
        maker.embed()
        _save(maker, work, key, 0)
    on_layer(done, count)
    for i in range(done, count):
        maker.layer(i)
        _save(maker, work, key, i + 1)
        on_layer(i + 1, count)
    maker.finish()
    golden = _golden(maker.kept, prompts, about)
    golden.save(work)
    (work / STATE).unlink()
    work.rename(out)
    return golden


def provenance(subject: Subject, dtype: torch.dtype) -> dict[str, Any]:
    """What the file is of, and by which rule it judges."""
    return {
        "format": FORMAT,
        "model": subject.name,
        "weights_format": subject.kind,
        "config_sha256": _config_hash(subject),
        "weights_sha256": weights_hash(subject.folder),
        "reference": str(dtype).removeprefix("torch."),
        "projections": WIDTH,
        "rule": {"k": K, "k_tail": K_TAIL, "floor": FLOOR, "slope": SLOPE, "whole": WHOLE_SLOPE},
        "versions": {
            "glm-portable": importlib.metadata.version("glm-portable"),
            "torch": torch.__version__,
        },
    }


def weights_hash(folder: Path) -> str:
    """Of small checkpoints all bytes; of large ones what the headers say: names, shapes, places."""
    entries = open_folder(folder)
    shards = sorted({entry.shard for entry in entries.values()}, key=lambda s: s.path.name)
    total = hashlib.sha256()
    for shard in shards:
        total.update(shard.path.name.encode())
        total.update(json.dumps(shard.header, sort_keys=True).encode())
        shard.file.close()
    if sum(shard.size for shard in shards) <= SMALL:
        for shard in shards:
            with shard.path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def check_subject(golden: Golden, subject: Subject) -> None:
    """Raise UsageError for a golden file of another model or format."""
    for field, ours in (
        (
            "config_sha256",
            _config_hash(subject),
        ),
        ("weights_sha256", weights_hash(subject.folder)),
        ("weights_format", subject.kind),
    ):
        if golden.about[field] != ours:
            raise UsageError(
                f"the golden file is of {golden.about['model']} with {field} "
                f"{golden.about[field][:12]}, but {subject.name} has {ours[:12]}: make one of it."
            )


def _config_hash(subject: Subject) -> str:
    return hashlib.sha256((subject.folder / "config.json").read_bytes()).hexdigest()


def _golden(kept: Kept, prompts: Prompts, about: Mapping[str, Any]) -> Golden:
    return Golden(about, tuple(map(tuple, prompts)), kept.tensors, kept.plain, kept.noise)


def _key(about: Mapping[str, Any], prompts: Prompts) -> str:
    """What an interrupted run must have been about to be gone on with."""
    text = json.dumps([dict(about), [list(ids) for ids in prompts]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _save(maker: Maker, work: Path, key: str, done: int) -> None:
    """All that `_resume` needs, in one file, so that it belongs together."""
    tensors = {f"kept.{name}": t.contiguous() for name, t in maker.kept.tensors.items()}
    for name, run in _runs(maker):
        tensors[f"{name}.x"] = run.x
        if run.residual is not None:
            tensors[f"{name}.residual"] = run.residual
    plain = {part: asdict(found) for part, found in maker.kept.plain.items()}
    tensors["entered"] = maker.entered
    metadata = {
        "key": key,
        "done": str(done),
        "plain": json.dumps(plain),
        "noise": json.dumps(maker.kept.noise),
    }
    beside = work / f".{STATE}"
    save_file(tensors, beside, metadata)
    os.replace(beside, work / STATE)


def _resume(maker: Maker, work: Path, key: str) -> int:
    """How many layers are done already."""
    path = work / STATE
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    if metadata["key"] != key:
        raise UsageError(
            f"{work} holds the beginning of another golden file (of other prompts, another model "
            "or version): remove it, or give another folder to --out."
        )
    tensors = load_file(path)
    for name, run in _runs(maker):
        run.x, run.residual = tensors[f"{name}.x"], tensors.get(f"{name}.residual")
    maker.entered = tensors["entered"]
    maker.kept = Kept(
        {n.removeprefix("kept."): t for n, t in tensors.items() if n.startswith("kept.")},
        {part: Distance(**found) for part, found in json.loads(metadata["plain"]).items()},
        json.loads(metadata["noise"]),
    )
    done = int(metadata["done"])
    maker.skip(done)
    return done


def _runs(maker: Maker) -> list[tuple[str, Run]]:
    return [("exact", maker.exact), ("plain", maker.plain)]
