"""What decoding makes of an instruction: a function of the wave that executes it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from glm_portable.virtual.cdna.chips import Chip
from glm_portable.virtual.cdna.state import Wave

Execute = Callable[[Wave], None]


@dataclass(frozen=True)
class Context:
    """What decoding needs beside the instruction. labels: instruction indices."""

    chip: Chip
    labels: Mapping[str, int]


@dataclass(frozen=True)
class Decoded:
    """kind: for statistics. touches: registers that no operation under way may still write."""

    execute: Execute
    kind: str
    touches: frozenset[int]
