"""Reading the PTX that Triton emits: one entry, its registers and its instructions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

__all__ = ["Address", "Entry", "Instruction", "Operand", "Vector", "parse"]


@dataclass(frozen=True)
class Vector:
    """{a, b, …}, of registers or constants; `_` is nothing."""

    parts: tuple[str, ...]


@dataclass(frozen=True)
class Address:
    """[base + offset], the base a register, a parameter or shared memory."""

    base: str
    offset: int


Operand: TypeAlias = str | Vector | Address  # str: a register, a constant, a label


@dataclass(frozen=True)
class Instruction:
    """guard: the register of @p, and is it @!p? operation: split at its dots."""

    text: str
    guard: tuple[str, bool] | None
    operation: tuple[str, ...]
    operands: tuple[Operand, ...]

    @property
    def types(self) -> tuple[str, ...]:
        """The parts of the operation that are types."""
        return tuple(part for part in self.operation[1:] if part in TYPES)


@dataclass
class Entry:
    """widths: bits of each register, 1 of predicates; labels: places in the code; tables: the
    labels that a jump chooses from, by the table's own; locals: where arrays begin in the
    `local_bytes` of each thread; shared: where arrays that assembly declares begin in
    `shared_bytes`; constants: arrays in global memory that come with the code.
    """

    name: str
    parameters: list[str]
    threads: int
    widths: dict[str, int] = field(default_factory=dict)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, list[str]] = field(default_factory=dict)
    locals: dict[str, int] = field(default_factory=dict)
    local_bytes: int = 0
    shared: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    constants: dict[str, bytes] = field(default_factory=dict)

    @cached_property
    def written(self) -> frozenset[str]:
        """The registers that some instruction may write: those it names first."""
        firsts = [each.operands[0] for each in self.code if each.operands]
        parts = [each.parts if isinstance(each, Vector) else (each,) for each in firsts]
        return frozenset(str(name) for each in parts for name in each)


TYPES = {
    "pred": 1, "b8": 8, "s8": 8, "u8": 8, "b16": 16, "s16": 16, "u16": 16, "f16": 16, "bf16": 16,
    "b32": 32, "s32": 32, "u32": 32, "f32": 32, "f16x2": 32, "bf16x2": 32, "tf32": 32, "b64": 64,
    "s64": 64, "u64": 64, "f64": 64,
}  # fmt: skip
_LOCAL = re.compile(r"\.local \.align (\d+) \.b8 (\w+)\[(\d+)\]")
_SHARED = re.compile(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\]")
_CONSTANT = re.compile(r"\.global \.align \d+ \.b8 (\w+)\[\d+\] = \{([\d, ]+)\}")
_LABEL = re.compile(r"(\$?[\w$]+):")


def parse(ptx: str) -> Entry:
    """Raises NotImplementedError for what Triton was not seen to emit."""
    text = re.sub(r"/\*.*?\*/", "", re.sub(r"//.*", "", ptx), flags=re.DOTALL)
    head = re.search(r"\.visible \.entry (\w+)\((.*?)\)\s*((?:\.\w+ [\d, ]+\s*)*)\{", text, re.S)
    threads = head and re.search(r"\.reqntid (\d+)", head[3])
    if not head or not threads:
        raise NotImplementedError(f"no entry in {ptx[:200]}")
    entry = Entry(head[1], re.findall(r"\w+(?=\s*(?:,|$))", head[2]), int(threads[1]))
    for name, values in _CONSTANT.findall(text[: head.start()]):
        entry.constants[name] = bytes(int(each) for each in values.split(","))
    scopes: list[dict[str, str]] = [{}]  # names of inline assembly to those of their block
    count, last = 0, ""
    for piece in _pieces(text[head.end() :]):
        if piece == "{":
            scopes.append({})
        elif piece == "}":
            scopes.pop()
            if not scopes:
                return entry
        elif label := _LABEL.fullmatch(piece):
            last = label[1]
            entry.labels[last] = len(entry.code)
        elif piece.startswith(".branchtargets"):
            names = piece.removeprefix(".branchtargets").split(",")
            entry.tables[last] = [name.strip() for name in names]
        elif local := _LOCAL.fullmatch(piece):
            alignment, name, size = int(local[1]), local[2], int(local[3])
            start = -(-entry.local_bytes // alignment) * alignment
            entry.locals[name], entry.local_bytes = start, start + size
        elif shared := _SHARED.fullmatch(piece):
            count += 1
            alignment, name, size = int(shared[1]), f"{shared[2]}@{count}", int(shared[3])
            start = -(-entry.shared_bytes // alignment) * alignment
            entry.shared[name], entry.shared_bytes = start, start + size
            scopes[-1][shared[2]] = name
        elif piece.startswith(".reg"):
            count += 1
            _declare(entry, piece, scopes[-1] if len(scopes) > 1 else {}, count)
        elif not piece.startswith(".pragma"):
            entry.code.append(_instruction(piece, scopes))
    raise NotImplementedError(f"the entry '{entry.name}' does not end")


def _pieces(text: str) -> Iterator[str]:
    """Statements, labels and the braces of blocks."""
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
        elif text[at] in "{}":
            yield text[at]
            at += 1
        elif label := _LABEL.match(text, at):
            yield label[0]
            at = label.end()
        else:
            end = text.index(";", at)
            yield " ".join(text[at:end].split())
            at = end + 1


def _declare(entry: Entry, piece: str, scope: dict[str, str], number: int) -> None:
    _, kind, names = piece.split(" ", 2)
    width = TYPES[kind.removeprefix(".")]
    for name in (each.strip() for each in names.split(",")):
        many = re.fullmatch(r"([%\w]+)<(\d+)>", name)
        for each in [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name]:
            own = each if each.startswith("%") else f"{each}@{number}"
            scope[each] = own
            entry.widths[own] = width


def _instruction(piece: str, scopes: list[dict[str, str]]) -> Instruction:
    def named(name: str) -> str:
        bare = name.removeprefix("!").strip()
        for scope in reversed(scopes):
            if bare in scope:
                return name.replace(bare, scope[bare])
        return name

    found = re.fullmatch(r"(?:@(!?)(%?\w+) )?([\w.:]+)\s*(.*)", piece)
    if not found:
        raise NotImplementedError(piece)
    guard = (named(found[2]), bool(found[1])) if found[2] else None
    operation = tuple(found[3].replace("::", "__").split("."))
    operands: list[Operand] = []
    for part in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", found[4]):
        inside = part[1:-1].strip()
        if part[0] == "{":
            operands.append(Vector(tuple(named(each.strip()) for each in inside.split(","))))
        elif part[0] == "[":
            base, _, offset = inside.partition("+")
            operands.append(Address(named(base.strip()), int(offset or "0", 0)))
        else:
            operands.append(named(part.strip()))
    return Instruction(piece, guard, operation, tuple(operands))
