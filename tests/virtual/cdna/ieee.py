"""IEEE 754 arithmetic on bit patterns in exact fractions, to compare the simulator's with."""

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Format:
    """A binary format: width of the exponent and of the stored significand."""

    exponent_bits: int
    fraction_bits: int

    @property
    def bias(self) -> int:
        return (1 << self.exponent_bits - 1) - 1

    @property
    def width(self) -> int:
        return 1 + self.exponent_bits + self.fraction_bits

    @property
    def infinity(self) -> int:
        return (1 << self.exponent_bits) - 1 << self.fraction_bits

    def sign(self, bits: int) -> int:
        return bits >> (self.width - 1) & 1

    def magnitude(self, bits: int) -> int:
        return bits & (1 << self.width - 1) - 1

    def is_nan(self, bits: int) -> bool:
        return self.magnitude(bits) > self.infinity

    def is_signalling(self, bits: int) -> bool:
        return self.is_nan(bits) and not bits >> (self.fraction_bits - 1) & 1

    def is_infinite(self, bits: int) -> bool:
        return self.magnitude(bits) == self.infinity

    def is_denormal(self, bits: int) -> bool:
        return 0 < self.magnitude(bits) < 1 << self.fraction_bits

    def value(self, bits: int) -> Fraction:
        """Of a finite pattern."""
        exponent = self.magnitude(bits) >> self.fraction_bits
        fraction = bits & (1 << self.fraction_bits) - 1
        significand = fraction + (1 << self.fraction_bits if exponent else 0)
        power = max(exponent, 1) - self.bias - self.fraction_bits
        value = Fraction(significand) * Fraction(2) ** power
        return -value if self.sign(bits) else value

    def signed(self, negative: bool | int, magnitude: int) -> int:
        return bool(negative) << (self.width - 1) | magnitude

    def round(self, exact: Fraction, negative_zero: bool = False) -> int:
        """To nearest, ties to even; overflow to infinity. negative_zero: the sign of an exact 0."""
        if exact == 0:
            return self.signed(negative_zero, 0)
        magnitude = abs(exact)
        power = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
        if Fraction(2) ** power > magnitude:
            power -= 1
        power = max(power, 1 - self.bias)
        units = magnitude / Fraction(2) ** (power - self.fraction_bits)
        whole, rest = divmod(units, 1)
        count = int(whole) + (rest > Fraction(1, 2) or rest == Fraction(1, 2) and int(whole) & 1)
        code = count + (power - 1 + self.bias << self.fraction_bits)
        return self.signed(exact < 0, min(code, self.infinity))

    def same(self, actual: int, expected: int | None) -> bool:
        """Equal patterns, or any NaN where None is expected."""
        return self.is_nan(actual) if expected is None else actual == expected

    # Operations: the result's pattern, None for any NaN

    def add(self, a: int, b: int) -> int | None:
        if self.is_nan(a) or self.is_nan(b):
            return None
        if self.is_infinite(a) or self.is_infinite(b):
            if self.is_infinite(a) and self.is_infinite(b) and a != b:
                return None
            return a if self.is_infinite(a) else b
        both_negative = bool(self.sign(a) & self.sign(b))
        return self.round(self.value(a) + self.value(b), both_negative)

    def negate(self, a: int) -> int:
        return a ^ 1 << self.width - 1

    def multiply(self, a: int, b: int) -> int | None:
        if self.is_nan(a) or self.is_nan(b):
            return None
        negative = self.sign(a) ^ self.sign(b)
        if self.is_infinite(a) or self.is_infinite(b):
            zero = self.magnitude(a) == 0 or self.magnitude(b) == 0
            return None if zero else self.signed(negative, self.infinity)
        return self.round(self.value(a) * self.value(b), bool(negative))

    def fma(self, a: int, b: int, c: int) -> int | None:
        if self.is_nan(a) or self.is_nan(b) or self.is_nan(c):
            return None
        negative = self.sign(a) ^ self.sign(b)
        if self.is_infinite(a) or self.is_infinite(b):
            product = self.multiply(a, b)
            return None if product is None else self.add(product, c)
        if self.is_infinite(c):
            return c
        exact = self.value(a) * self.value(b) + self.value(c)
        return self.round(exact, bool(negative & self.sign(c)))

    def divide(self, a: int, b: int) -> int | None:
        if self.is_nan(a) or self.is_nan(b):
            return None
        negative = self.sign(a) ^ self.sign(b)
        if self.is_infinite(a):
            return None if self.is_infinite(b) else self.signed(negative, self.infinity)
        if self.is_infinite(b):
            return self.signed(negative, 0)
        if self.magnitude(b) == 0:
            return None if self.magnitude(a) == 0 else self.signed(negative, self.infinity)
        return self.round(self.value(a) / self.value(b), bool(negative))

    def minimum(self, a: int, b: int, largest: bool = False) -> int:
        """V_MIN_F32 (V_MAX_F32 if `largest`) in IEEE mode, step by step as the ISA document."""
        quiet = 1 << self.fraction_bits - 1
        if self.is_signalling(a):
            return a | quiet
        if self.is_signalling(b):
            return b | quiet
        if self.is_nan(a):
            return b
        if self.is_nan(b):
            return a
        return max(a, b, key=self.order) if largest else min(a, b, key=self.order)

    def order(self, bits: int) -> int:
        """Patterns of numbers ordered as their values, -0 below +0."""
        magnitude = self.magnitude(bits)
        return -magnitude - 1 if self.sign(bits) else magnitude

    def less(self, a: int, b: int) -> bool:
        if self.is_nan(a) or self.is_nan(b):
            return False
        return self._plain(a) < self._plain(b)

    def equal(self, a: int, b: int) -> bool:
        return not (self.is_nan(a) or self.is_nan(b)) and self._plain(a) == self._plain(b)

    def _plain(self, bits: int) -> int:
        return -self.magnitude(bits) if self.sign(bits) else self.magnitude(bits)


F32, F16, BF16 = Format(8, 23), Format(5, 10), Format(8, 7)

F32_EDGES = [
    0x00000000, 0x80000000, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFF800001,
    0x00000001, 0x80000001, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x40490FDB, 0x3F7FFFFF,
    0xC2F6E979, 0x33800000, 0x4B800001,
]  # fmt: skip
"""Zeros, ones, infinities, a quiet and a signalling NaN, denormals and their neighbours, the
largest numbers, and some in between."""

F16_EDGES = [
    0x0000, 0x8000, 0x3C00, 0xBC00, 0x7C00, 0xFC00, 0x7E01, 0xFC01, 0x0001, 0x8001, 0x03FF, 0x0400,
    0x7BFF, 0xFBFF, 0x4248, 0x3BFF, 0x6401, 0x1234,
]  # fmt: skip
