"""Vector comparisons V_CMP_* and V_CMP_CLASS_* (CDNA3 ISA section 12.11, VOPC)."""

import re
from collections.abc import Callable

import numpy as np

from glm_portable.virtual.cdna.lanes import Vector
from glm_portable.virtual.cdna.operation import Operation

_COMPARE: dict[str, Callable[[Vector, Vector], Vector]] = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
}
_INTEGER: dict[str, Callable[[Vector, Vector], Vector]] = {**_COMPARE, "ne": np.not_equal}
_FLOAT: dict[str, Callable[[Vector, Vector], Vector]] = {
    **_COMPARE,
    "lg": lambda a, b: (a < b) | (a > b),
    "o": lambda a, b: (a == a) & (b == b),
    "u": lambda a, b: (a != a) | (b != b),
    "nlt": lambda a, b: ~(a < b),
    "nle": lambda a, b: ~(a <= b),
    "ngt": lambda a, b: ~(a > b),
    "nge": lambda a, b: ~(a >= b),
    "neq": np.not_equal,
    "nlg": lambda a, b: ~((a < b) | (a > b)),
}
_NAME = re.compile(r"v_cmp_([a-z]+)_([uif](?:16|32|64))")
_LETTERS = {
    "u16": "w",
    "i16": "j",
    "f16": "h",
    "u32": "u",
    "i32": "i",
    "f32": "f",
    "u64": "U",
    "i64": "I",
}


def comparison(mnemonic: str) -> Operation | None:
    """None for a mnemonic that is no comparison known here."""
    match = _NAME.fullmatch(mnemonic)
    if match is None or match[2] not in _LETTERS:
        return None
    name, letter = match[1], _LETTERS[match[2]]
    if name == "class":
        return Operation(_is_of_class, f"{letter}u>M") if letter in "fh" else None
    compare = (_FLOAT if letter in "fh" else _INTEGER).get(name)
    return None if compare is None else Operation(compare, f"{letter}{letter}>M")


def _is_of_class(a: Vector, wanted: Vector) -> Vector:
    """Bit i of `wanted` asks for: 0 signalling NaN, 1 quiet NaN, 2 -infinity, 3 negative normal,
    4 negative denormal, 5 -0, 6 +0, 7 positive denormal, 8 positive normal, 9 +infinity."""
    bits = a.view(np.uint32 if a.dtype == np.float32 else np.uint16).astype(np.uint32)
    fraction = 23 if a.dtype == np.float32 else 10
    quiet = bits >> np.uint32(fraction - 1) & 1 != 0
    denormal = (a != 0) & (np.abs(a) < np.finfo(a.dtype).tiny)
    positive = np.select([np.isinf(a), denormal, a == 0], [9, 7, 6], 8)
    number = np.where(np.signbit(a), 11 - positive, positive)
    index = np.where(np.isnan(a), quiet, number)
    chosen: Vector = wanted >> index.astype(np.uint32) & 1 != 0
    return chosen
