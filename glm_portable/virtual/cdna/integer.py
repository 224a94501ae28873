"""Integer vector operations (CDNA3 ISA sections 12.7 to 12.11), over 64 lanes."""

import numpy as np

from glm_portable.virtual.cdna.lanes import Vector, Words
from glm_portable.virtual.cdna.operation import Operation

_U32, _U64 = np.uint32, np.uint64


def _shift_count(n: Words, width: int) -> Words:
    return n & _U32(width - 1)


def _low24(x: Words) -> Words:
    return x & _U32(0xFFFFFF)


def _signed24(x: Words) -> Vector:
    return (x << _U32(8)).view(np.int32) >> 8


def _mul_hi_u32(a: Words, b: Words) -> Words:
    return (a.astype(_U64) * b.astype(_U64) >> _U64(32)).astype(_U32)


def _mul_hi_i32(a: Vector, b: Vector) -> Vector:
    return (a.astype(np.int64) * b.astype(np.int64) >> 32).astype(np.int32)


def _extract(x: Words, offset: Words, count: Words) -> Words:
    """(x >> offset[4:0]) & ((1 << count[4:0]) - 1)."""
    mask = (_U32(1) << (count & _U32(31))) - _U32(1)
    field: Words = x >> (offset & _U32(31)) & mask
    return field


def _extract_signed(x: Vector, offset: Words, count: Words) -> Words:
    """As _extract, but x is shifted arithmetically and the field's highest bit is its sign."""
    count = count & _U32(31)
    shifted = (x >> (offset & _U32(31)).view(np.int32)).view(_U32)
    field = shifted & (_U32(1) << count) - _U32(1)
    sign = np.where(count > 0, _U32(1) << ((count - _U32(1)) & _U32(31)), 0).astype(_U32)
    return (field ^ sign) - sign


def _byte_permute(a: Words, b: Words, selector: Words) -> Words:
    """V_PERM_B32: bytes 0-3 are b's, 4-7 a's; 8-11 the sign of bytes 1, 3, 5, 7; 12: 0; else ff."""
    source = np.stack([b, a], axis=1).view(np.uint8)  # (64, 8)
    signs = np.where(source[:, 1::2] & 0x80, 0xFF, 0).astype(np.uint8)
    fixed = np.zeros((len(a), 244), np.uint8)
    fixed[:, 1:] = 0xFF
    table = np.concatenate([source, signs, fixed], axis=1)  # (64, 256)
    chosen = np.take_along_axis(table, selector[:, None].view(np.uint8).astype(np.intp), axis=1)
    return np.ascontiguousarray(chosen).view(_U32)[:, 0]


def _reverse_bits(x: Words) -> Words:
    bits = np.unpackbits(x[:, None].view(np.uint8), axis=1, bitorder="little")
    return np.packbits(bits[:, ::-1], axis=1, bitorder="little").view(_U32)[:, 0]


def _align_bits(a: Words, b: Words, shift: Words) -> Words:
    wide = a.astype(_U64) << _U64(32) | b
    return (wide >> (shift & _U32(31)).astype(_U64)).astype(_U32)


def _align_bytes(a: Words, b: Words, shift: Words) -> Words:
    wide = a.astype(_U64) << _U64(32) | b
    return (wide >> (_U32(8) * (shift & _U32(3))).astype(_U64)).astype(_U32)


def _add_saturating(a: Words, b: Words) -> Words:
    return np.where(a + b < a, _U32(0xFFFFFFFF), a + b)


def _sub_saturating(a: Words, b: Words) -> Words:
    return np.where(a < b, _U32(0), a - b)


def _median(a: Vector, b: Vector, c: Vector) -> Vector:
    return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))


def _add_carry(a: Words, b: Words) -> tuple[Words, Vector]:
    total = a + b
    return total, total < a


def _add_with_carry(a: Words, b: Words, carry: Vector) -> tuple[Words, Vector]:
    total = a.astype(_U64) + b + carry
    return total.astype(_U32), total >> _U64(32) != 0


def _sub_with_borrow(a: Words, b: Words, borrow: Vector) -> tuple[Words, Vector]:
    total = a.astype(np.int64) - b - borrow
    return total.astype(_U32), total < 0


def _mad_u64_u32(a: Words, b: Words, c: Vector) -> tuple[Vector, Vector]:
    total = a.astype(_U64) * b.astype(_U64) + c
    return total, total < c


def _mad_i64_i32(a: Vector, b: Vector, c: Vector) -> tuple[Vector, Vector]:
    """The sum's low 64 bits, and its 65th, the sign of the exact sum."""
    product = a.astype(np.int64) * b.astype(np.int64)
    total = product + c
    overflow = (product < 0) == (c < 0)
    overflow &= (total < 0) != (c < 0)
    return total, (total < 0) != overflow


def _find_high(x: Words) -> Words:
    """Leading zeros; -1 for 0."""
    _, exponent = np.frexp(x.astype(np.float64))
    return np.where(x == 0, 0xFFFFFFFF, 32 - exponent).astype(_U32)


def _find_sign(x: Vector) -> Words:
    """Of the bits below the sign, how many equal it, plus one; -1 where all do."""
    differing = (x ^ x >> 31).view(_U32)
    return np.where(differing == 0, _U32(0xFFFFFFFF), _find_high(differing))


def _find_low(x: Words) -> Words:
    _, exponent = np.frexp((x & -x.view(np.int32).astype(np.int64)).astype(np.float64))
    return np.where(x == 0, 0xFFFFFFFF, exponent - 1).astype(_U32)


def truth_table(a: Words, b: Words, c: Words, table: int) -> Words:
    """V_BITOP3_B32: bit i of `table` is the result where the bits of a, b, c spell i."""
    result = np.zeros_like(a)
    for i in range(8):
        if table >> i & 1:
            result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return result


OPERATIONS: dict[str, Operation] = {
    "v_mov_b32": Operation(lambda a: a.copy(), "b>u"),
    "v_mov_b64": Operation(lambda a: a, "U>U", upward=True),
    "v_accvgpr_read_b32": Operation(lambda a: a.copy(), "u>u"),
    "v_accvgpr_write_b32": Operation(lambda a: a.copy(), "u>u"),
    "v_accvgpr_mov_b32": Operation(lambda a: a.copy(), "u>u"),
    "v_not_b32": Operation(lambda a: ~a, "u>u"),
    "v_bfrev_b32": Operation(_reverse_bits, "u>u"),
    "v_ffbh_u32": Operation(_find_high, "u>u"),
    "v_ffbh_i32": Operation(_find_sign, "i>u"),
    "v_ffbl_b32": Operation(_find_low, "u>u"),
    "v_bcnt_u32_b32": Operation(lambda a, b: np.bitwise_count(a).astype(_U32) + b, "uu>u"),
    "v_add_u32": Operation(lambda a, b: a + b, "uu>u", clamped=_add_saturating),
    "v_sub_u32": Operation(lambda a, b: a - b, "uu>u", clamped=_sub_saturating),
    "v_subrev_u32": Operation(
        lambda a, b: b - a, "uu>u", clamped=lambda a, b: _sub_saturating(b, a)
    ),
    "v_add_i32": Operation(lambda a, b: a + b, "uu>u"),
    "v_sub_i32": Operation(lambda a, b: a - b, "uu>u"),
    "v_mul_lo_u32": Operation(lambda a, b: a * b, "uu>u"),
    "v_mul_hi_u32": Operation(_mul_hi_u32, "uu>u"),
    "v_mul_hi_i32": Operation(_mul_hi_i32, "ii>i"),
    "v_mul_u32_u24": Operation(lambda a, b: _low24(a) * _low24(b), "uu>u"),
    "v_mul_i32_i24": Operation(lambda a, b: _signed24(a) * _signed24(b), "uu>i"),
    "v_mul_hi_u32_u24": Operation(lambda a, b: _mul_hi_u32(_low24(a), _low24(b)), "uu>u"),
    "v_mul_hi_i32_i24": Operation(lambda a, b: _mul_hi_i32(_signed24(a), _signed24(b)), "uu>i"),
    "v_mad_u32_u24": Operation(lambda a, b, c: _low24(a) * _low24(b) + c, "uuu>u"),
    "v_mad_i32_i24": Operation(lambda a, b, c: _signed24(a) * _signed24(b) + c, "uui>i"),
    "v_mad_u64_u32": Operation(_mad_u64_u32, "uuU>UM", upward=True),
    "v_mad_i64_i32": Operation(_mad_i64_i32, "iiI>IM", upward=True),
    "v_add_co_u32": Operation(_add_carry, "uu>uM"),
    "v_addc_co_u32": Operation(_add_with_carry, "uum>uM"),
    "v_sub_co_u32": Operation(lambda a, b: (a - b, a < b), "uu>uM"),
    "v_subrev_co_u32": Operation(lambda a, b: (b - a, b < a), "uu>uM"),
    "v_subb_co_u32": Operation(_sub_with_borrow, "uum>uM"),
    "v_subbrev_co_u32": Operation(lambda a, b, m: _sub_with_borrow(b, a, m), "uum>uM"),
    "v_and_b32": Operation(lambda a, b: a & b, "uu>u"),
    "v_or_b32": Operation(lambda a, b: a | b, "uu>u"),
    "v_xor_b32": Operation(lambda a, b: a ^ b, "uu>u"),
    "v_xnor_b32": Operation(lambda a, b: ~(a ^ b), "uu>u"),
    "v_lshlrev_b32": Operation(lambda n, a: a << _shift_count(n, 32), "uu>u"),
    "v_lshrrev_b32": Operation(lambda n, a: a >> _shift_count(n, 32), "uu>u"),
    "v_ashrrev_i32": Operation(lambda n, a: a >> (n & 31), "ii>i"),
    "v_lshlrev_b64": Operation(lambda n, a: a << (n & _U32(63)).astype(_U64), "uU>U", upward=True),
    "v_lshrrev_b64": Operation(lambda n, a: a >> (n & _U32(63)).astype(_U64), "uU>U"),
    "v_ashrrev_i64": Operation(lambda n, a: a >> (n & 63).astype(np.int64), "iI>I"),
    "v_lshl_add_u64": Operation(
        lambda a, n, c: (a << (n & _U32(7)).astype(_U64)) + c, "UuU>U", upward=True
    ),
    "v_lshl_add_u32": Operation(lambda a, n, c: (a << _shift_count(n, 32)) + c, "uuu>u"),
    "v_add_lshl_u32": Operation(lambda a, b, n: a + b << _shift_count(n, 32), "uuu>u"),
    "v_lshl_or_b32": Operation(lambda a, n, c: a << _shift_count(n, 32) | c, "uuu>u"),
    "v_and_or_b32": Operation(lambda a, b, c: a & b | c, "uuu>u"),
    "v_or3_b32": Operation(lambda a, b, c: a | b | c, "uuu>u"),
    "v_add3_u32": Operation(lambda a, b, c: a + b + c, "uuu>u"),
    "v_xad_u32": Operation(lambda a, b, c: (a ^ b) + c, "uuu>u"),
    "v_bfe_u32": Operation(_extract, "uuu>u"),
    "v_bfe_i32": Operation(_extract_signed, "iuu>u"),
    "v_bfi_b32": Operation(lambda a, b, c: a & b | ~a & c, "uuu>u"),
    "v_bfm_b32": Operation(
        lambda a, b: (_U32(1) << _shift_count(a, 32)) - _U32(1) << _shift_count(b, 32), "uu>u"
    ),
    "v_perm_b32": Operation(_byte_permute, "uuu>u"),
    "v_alignbit_b32": Operation(_align_bits, "uuu>u"),
    "v_alignbyte_b32": Operation(_align_bytes, "uuu>u"),
    "v_min_i32": Operation(np.minimum, "ii>i"),
    "v_max_i32": Operation(np.maximum, "ii>i"),
    "v_min_u32": Operation(np.minimum, "uu>u"),
    "v_max_u32": Operation(np.maximum, "uu>u"),
    "v_min3_i32": Operation(lambda a, b, c: np.minimum(np.minimum(a, b), c), "iii>i"),
    "v_max3_i32": Operation(lambda a, b, c: np.maximum(np.maximum(a, b), c), "iii>i"),
    "v_min3_u32": Operation(lambda a, b, c: np.minimum(np.minimum(a, b), c), "uuu>u"),
    "v_max3_u32": Operation(lambda a, b, c: np.maximum(np.maximum(a, b), c), "uuu>u"),
    "v_med3_i32": Operation(_median, "iii>i"),
    "v_med3_u32": Operation(_median, "uuu>u"),
}
