"""What a converted checkpoint consists of: its tensors, what each is made of, and its files."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from glm_portable import modelslim
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.formats import W8A8, is_quantised
from glm_portable.shards import Entry
from glm_portable.stored import KINDS, OFFSET, SCALES, Entries, mtp_prefix

HEADER_ENTRY = 128
"""Bytes that a tensor takes in a file's header beside its name, at most."""


@dataclass(frozen=True)
class Output:
    """One tensor of the result."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Of its data, in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Part:
    """What one tensor on disk becomes; its outputs go into the same file.

    how: "copy" the bytes; "plain", dequantised to BF16; "int8", as weight, scale and offset.
    """

    how: Literal["copy", "plain", "int8"]
    source: str
    outputs: tuple[Output, ...]

    @property
    def nbytes(self) -> int:
        """Of all outputs."""
        return sum(output.nbytes for output in self.outputs)

    @property
    def file_bytes(self) -> int:
        """As `nbytes`, with the header's share."""
        return self.nbytes + sum(len(output.name) + HEADER_ENTRY for output in self.outputs)


def parts(entries: Entries, config: ModelConfig, target: str) -> list[Part]:
    """The whole checkpoint in the format `target`, in the order in which it lies on disk."""
    return [
        _part(entries, entry, config, target)
        for name, entry in entries.items()
        if not name.endswith((*SCALES, OFFSET))
    ]


def _part(entries: Entries, entry: Entry, config: ModelConfig, target: str) -> Part:
    name = entry.name
    module = name.removesuffix(".weight")
    if target == W8A8 and is_quantised(module, config):
        return _int8(entry)
    if entry.dtype not in KINDS:
        return Part("copy", name, (Output(name, entry.dtype, entry.shape),))
    if module == f"{mtp_prefix(config)}.shared_head.head":
        # A rounded copy of the model's head: the original is what BF16 checkpoints hold here.
        head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        if head in entries:
            return Part("copy", head, (Output(name, entries[head].dtype, entries[head].shape),))
    _check_matrix(entry)
    return Part("plain", name, (Output(name, torch.bfloat16, entry.shape),))


def _int8(entry: Entry) -> Part:
    _check_matrix(entry)
    scales = (entry.shape[0], 1)
    outputs = (
        Output(entry.name, torch.int8, entry.shape),
        Output(f"{entry.name}_scale", torch.float32, scales),
        Output(f"{entry.name}_offset", torch.float32, scales),
    )
    return Part("int8", entry.name, outputs)


def _check_matrix(entry: Entry) -> None:
    if len(entry.shape) != 2:
        raise UsageError(
            f"{entry.name} in {entry.shard.path} has shape {list(entry.shape)}, but it is a linear "
            "weight and has two dimensions: take weights and config.json of the same model."
        )


def files(parts: Sequence[Part], limit: int) -> dict[str, list[Part]]:
    """File name -> its parts: as many as fit into `limit` bytes, at least one."""
    shards = list(_filled(parts, limit))
    return {
        f"model-{i + 1:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards)
    }


def _filled(parts: Sequence[Part], limit: int) -> Iterator[list[Part]]:
    shard: list[Part] = []
    size = 0
    for part in parts:
        if shard and size + part.file_bytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(part)
        size += part.file_bytes
    if shard:
        yield shard


def tags(parts: Sequence[Part]) -> dict[str, str]:
    """The description's tags: all tensors of a quantised module have the same one."""
    modules = {part.source.removesuffix(".weight") for part in parts if part.how == "int8"}
    return {
        output.name: modelslim.DYNAMIC
        if output.name.rpartition(".")[0] in modules
        else modelslim.FLOAT
        for part in parts
        for output in part.outputs
    }
