"""Find the hot loop in a list of instructions with labels."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

_ENDS = ("EXIT", "s_endpgm")  # unconditional ones: a predicate would stand in front


class Instruction(NamedTuple):
    """opcode: the mnemonic. text: the whole line. target: where it branches to, or None."""

    opcode: str
    text: str
    target: str | None = None


class Listing(NamedTuple):
    """labels: the index of the first instruction after each label."""

    instructions: Sequence[Instruction]
    labels: Mapping[str, int]


def hot_range(listing: Listing, is_matrix: Callable[[str], bool]) -> range:
    """The instructions of the hot loop: see metrics.Loop.

    A loop is what lies between a label and a branch back to it; its body may span several blocks,
    as masked loads make of it. It is innermost if no other loop with a matrix instruction lies
    within it. A branch back from beyond the program's end belongs to code that was moved out of
    the way, such as the wait of a barrier that has to try again.
    """
    instructions = listing.instructions
    ends = [i for i, each in enumerate(instructions) if each.text.startswith(_ENDS)]
    found: dict[range, int] = {}
    for end, instruction in enumerate(instructions):
        start = listing.labels.get(instruction.target or "", end + 1)
        if start <= end and not any(start <= i < end for i in ends):
            body = range(start, end + 1)
            count = sum(is_matrix(instructions[i].opcode) for i in body)
            if count:
                found[body] = count
    innermost = {r: n for r, n in found.items() if not any(_within(o, r) for o in found)}
    return max(innermost, key=innermost.__getitem__, default=range(len(instructions)))


def _within(inner: range, outer: range) -> bool:
    return inner != outer and outer.start <= inner.start and inner.stop <= outer.stop
