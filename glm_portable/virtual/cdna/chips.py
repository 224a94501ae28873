"""What FP8 means to the chips that are simulated; what else they have: virtual.chips."""

from dataclasses import dataclass

from glm_portable.errors import UsageError
from glm_portable.virtual.cdna.conversions import (
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    MiniFloat,
)


@dataclass(frozen=True)
class Chip:
    """fp8, bf8: the formats of instructions named so."""

    name: str
    fp8: MiniFloat
    bf8: MiniFloat


CHIPS = {
    "gfx942": Chip("gfx942", E4M3FNUZ, E5M2FNUZ),
    "gfx950": Chip("gfx950", E4M3FN, E5M2),
}


def chip_named(arch: str) -> Chip:
    """Raises UsageError for an architecture that is not simulated."""
    if arch not in CHIPS:
        raise UsageError(f"architecture {arch!r} is not simulated; use one of {', '.join(CHIPS)}.")
    return CHIPS[arch]
