"""How a simulated operator refuses a call that its document does not allow."""

from torch import Tensor


class Refusal(RuntimeError):
    """One sentence: the operator, its argument, the value it had, and the rule."""


class WithoutValues(Exception):
    """What shapes and types decide holds; the rest needs numbers, and a tensor has none."""


def values_needed(*tensors: Tensor) -> None:
    """Stands before the first use of a number: a trace of shapes goes no further."""
    if any(t.is_meta for t in tensors):
        raise WithoutValues


def require(holds: bool, op: str, argument: str, value: object, rule: str) -> None:
    """Raise Refusal unless `holds`."""
    if not holds:
        raise Refusal(f"{op}: {argument} is {value}, but {rule}.")
