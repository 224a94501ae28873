"""Assembly text of one kernel: instructions, labels, .amdhsa directives and metadata."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from glm_portable.virtual.cdna.faults import UnsupportedInstruction
from glm_portable.virtual.cdna.operands import Operand, parse_operand

_LABEL = re.compile(r"([\w.$]+):\s*")
_INSTRUCTION = re.compile(r"\s+([a-z]\w+)(?:\s+(.*))?")
_DIRECTIVE = re.compile(r"\s+\.amdhsa_(?!kernel\b)(\w+)\s+(.*)")
_SECTION = re.compile(r"\s*\.(text|section|rodata|data|bss)\b.*")
_DATA = re.compile(r"\s+\.(byte|short|long|quad|ascii|asciz|zero)\b.*")
_ELSE = re.compile(r"\s*(\..*)?")  # an empty line, or a directive that says nothing of the code
_MODIFIER = re.compile(r"([a-z]\w*):(.+)", re.DOTALL)
_ENCODING = re.compile(r"(\w+?)_(e32|e64|sdwa|dpp)")
_MOST_REPORTED = 8
_METADATA = re.compile(r"\.amdgpu_metadata\s*\n---\n(.*?)\n\.\.\.", re.DOTALL)
_FLAGS = frozenset(
    "offen idxen lds sc0 sc1 nt clamp gds row_mirror row_half_mirror bound_ctrl".split()
)


@dataclass
class Modifiers:
    """An instruction's modifiers; whoever gives one a meaning takes it, and none may be left."""

    values: dict[str, str]
    taken: set[str] = field(default_factory=set)

    def take(self, name: str) -> str | None:
        self.taken.add(name)
        return self.values.get(name)

    def flag(self, name: str) -> bool:
        return self.take(name) is not None

    def integer(self, name: str, default: int = 0) -> int:
        value = self.take(name)
        return default if value is None else int(value, 0)

    def bits(self, name: str, count: int, default: int) -> list[int]:
        """A list such as op_sel:[0,1], filled up with `default` to `count` entries."""
        value = self.take(name)
        given = [] if value is None else [int(x) for x in value.strip("[]").split(",")]
        return given + [default] * (count - len(given))

    @property
    def left(self) -> list[str]:
        return sorted(set(self.values) - self.taken)


@dataclass(frozen=True)
class Instruction:
    """mnemonic: without the encoding's suffix (_e32, _e64, _sdwa, _dpp)."""

    mnemonic: str
    encoding: str
    operands: tuple[Operand, ...]
    modifiers: Modifiers
    line: int
    text: str

    @property
    def registers(self) -> tuple[int, ...]:
        """Every register named by an operand."""
        return tuple(r for operand in self.operands for r in operand.registers)

    def expect(self, *counts: int) -> None:
        """Raise UnsupportedInstruction unless the number of operands is one of `counts`."""
        if len(self.operands) not in counts:
            raise UnsupportedInstruction(f"{self.mnemonic} with {len(self.operands)} operands")


@dataclass(frozen=True)
class Program:
    """labels: the index into `instructions` each stands before."""

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    directives: dict[str, int]
    metadata: dict[str, Any]


def parse(text: str) -> Program:
    """Raises UnsupportedInstruction for a line of code that is not an instruction's form."""
    reader = _Reader()
    problems: list[str] = []
    for number, raw in enumerate(text.split("\t.amdgpu_metadata")[0].split("\n"), start=1):
        line = raw.split(";")[0].rstrip()
        try:
            reader.read(line, number)
        except UnsupportedInstruction as problem:
            problems.append(f"line {number}: {line.strip()}: {problem.reason}")
    refuse(problems)
    return Program(tuple(reader.instructions), reader.labels, reader.directives, _metadata(text))


def refuse(problems: list[str]) -> None:
    """Raise UnsupportedInstruction that lists the problems, up to eight, if there are any."""
    if problems:
        more = len(problems) - _MOST_REPORTED
        rest = [f"and {more} more"] if more > 0 else []
        raise UnsupportedInstruction("\n".join([*problems[:_MOST_REPORTED], *rest]))


@dataclass
class _Reader:
    """What has been read so far, line by line."""

    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    directives: dict[str, int] = field(default_factory=dict)
    in_code: bool = True

    def read(self, line: str, number: int) -> None:
        if match := _LABEL.fullmatch(line):
            self.labels[match[1]] = len(self.instructions)
        elif match := _DIRECTIVE.fullmatch(line):
            self._directive(match[1], match[2])
        elif match := _SECTION.fullmatch(line):
            self.in_code = match[1] == "text"
        elif match := _INSTRUCTION.fullmatch(line):
            name, rest = match[1], match[2] or ""
            self.instructions.append(_instruction(name, rest, number, line.strip()))
        elif not _ELSE.fullmatch(line) or self.in_code and _DATA.fullmatch(line):
            raise UnsupportedInstruction("no instruction, label or directive known here")

    def _directive(self, name: str, value: str) -> None:
        if not value.isdecimal():
            raise UnsupportedInstruction(f"{value} is not a number")
        self.directives[name] = int(value)


def parse_instruction(text: str, line: int = 1) -> Instruction:
    """One instruction from its text."""
    name, _, rest = text.strip().partition(" ")
    return _instruction(name, rest, line, text.strip())


def _instruction(name: str, rest: str, line: int, text: str) -> Instruction:
    match = _ENCODING.fullmatch(name)
    mnemonic, encoding = (match[1], match[2]) if match else (name, "")
    operands, modifiers = [], {}
    for token in _tokens(rest):
        if modifier := _MODIFIER.fullmatch(token):
            modifiers[modifier[1]] = modifier[2]
        elif token in _FLAGS:
            modifiers[token] = "1"
        elif token != "&":
            operands.append(parse_operand(token))
    return Instruction(mnemonic, encoding, tuple(operands), Modifiers(modifiers), line, text)


def _tokens(text: str) -> Iterator[str]:
    """Split at commas and blanks outside brackets."""
    depth, token = 0, ""
    for character in text:
        depth += (character in "[(") - (character in "])")
        if depth == 0 and character in ", \t":
            if token:
                yield token
            token = ""
        elif character not in " \t":
            token += character
    if token:
        yield token


def _metadata(text: str) -> dict[str, Any]:
    """The first kernel's entry of the code object metadata; empty for a bare fragment."""
    match = _METADATA.search(text)
    if match is None:
        return {}
    metadata: dict[str, Any] = yaml.safe_load(match[1])["amdhsa.kernels"][0]
    return metadata
