"""Which Ascend chips the backend knows, by the names that the CANN runtime gives them.

| generation | names | served as |
|---|---|---|
| A2 | Ascend910B1 to B4 | Atlas 800 A2: INT8 and BF16, no FP8 |
| A3 | Ascend910_93xx | Atlas 800 A3: the same; two dies a card, each a device |
| A5 | Ascend950PR, Ascend950DT | MXFP8 besides, which this backend does not use |
"""

import re
from dataclasses import dataclass

from glm_portable.errors import UsageError

GENERATIONS = (
    ("A2", re.compile(r"Ascend910B[1-4](-1|C)?")),
    ("A3", re.compile(r"Ascend910_93\d\d")),
    ("A5", re.compile(r"Ascend950(PR|DT)(_\w+)?")),
)


@dataclass(frozen=True)
class Chip:
    """name: as aclrtGetSocName has it. generation: A2, A3 or A5."""

    name: str
    generation: str

    @classmethod
    def named(cls, name: str) -> "Chip":
        """Raises UsageError for a chip this backend was not written for."""
        for generation, pattern in GENERATIONS:
            if pattern.fullmatch(name):
                return cls(name, generation)
        raise UsageError(
            f"Ascend chip {name!r} is not supported: GLM-4.5 runs on A2 (Ascend910B1 to B4), A3 "
            "(Ascend910_93xx, such as Ascend910_9391) and 950 (such as Ascend950PR_9599)."
        )
