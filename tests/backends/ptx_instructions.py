"""What each instruction of PTX does to a program, but for branches and barriers."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from ptx_arithmetic import Arithmetic, arithmetic
from ptx_memory import PtxError
from ptx_parse import TYPES, Address, Instruction, Operand, Vector
from ptx_program import Program
from ptx_values import UNSIGNED, Array, of_bits, to_bits
from ptx_warp import load_matrices, multiply, reduce, shuffle, store_matrices
from ptx_wgmma import element_addresses, fragments, left_operand

__all__ = ["decoded"]

_HINTS = {"ca", "cg", "cs", "lu", "nc", "relaxed", "acquire", "release", "gpu", "cta", "sys"}


def decoded(instruction: Instruction) -> Callable[[Program], None]:
    """What an instruction does to a program; branches and barriers are done by ptx_machine."""
    name = instruction.operation[0]
    if name in ("bra", "brx", "ret", "exit") or instruction.operation == ("bar", "sync"):
        if name == "bar" and instruction.operands != ("0",):
            raise NotImplementedError(instruction.text)
        return _nothing
    try:
        if name == "madc" or "cc" in instruction.operation:
            return _multiply_and_carry(instruction)
        rule = arithmetic(instruction)
        if rule:
            return lambda program: _compute(program, instruction, rule)
        if name in _RULES:
            return _RULES[name](instruction)
    except (NotImplementedError, ValueError, KeyError) as error:
        raise NotImplementedError(f"{instruction.text}: {error}") from error
    raise NotImplementedError(instruction.text)


def _nothing(program: Program) -> None:
    """Fences: what a program stores is seen by those that run after it."""


def _compute(program: Program, instruction: Instruction, rule: Arithmetic) -> None:
    result, *operands = instruction.operands
    values = [program.value(each, kind) for each, kind in zip(operands, rule.operands, strict=True)]
    found = rule.function(*values)
    program.write(result, to_bits(found, rule.result), rule.result)


def _multiply_and_carry(instruction: Instruction) -> Callable[[Program], None]:
    """mad.lo.cc and madc.hi, one behind the other: a number of 64 bits."""
    if instruction.operation not in (("mad", "lo", "cc", "u32"), ("madc", "hi", "u32")):
        raise NotImplementedError("carry")
    low = instruction.operation[1] == "lo"
    to, *operands = instruction.operands

    def run(program: Program) -> None:
        a, b, c = (program.all_threads(each, "u32").astype(np.uint64) for each in operands)
        product, half = a * b, np.uint64(32)
        if low:
            total = (product & np.uint64(0xFFFFFFFF)) + c
            program.carry = total >> half
        else:
            total = (product >> half) + c + program.carry
        program.write(to, total.astype(np.uint32), "u32")

    return run


def _move(instruction: Instruction) -> Callable[[Program], None]:
    to, source = instruction.operands
    (kind,) = instruction.types
    if isinstance(to, Vector):
        parts = to.parts
        piece = f"b{TYPES[kind] // len(parts)}"

        def unpack(program: Program) -> None:
            pieces = program.all_threads(source, kind).view(UNSIGNED[TYPES[piece]])
            for i, part in enumerate(parts):
                program.write(part, np.ascontiguousarray(pieces[i :: len(parts)]), piece)

        return unpack
    if isinstance(source, Vector):
        inside = source.parts
        piece = f"b{TYPES[kind] // len(inside)}"

        def pack(program: Program) -> None:
            pieces = np.stack([program.packed(part, piece) for part in inside], axis=1)
            program.write(to, pieces.reshape(-1).view(UNSIGNED[TYPES[kind]]), kind)

        return pack
    return lambda program: program.write(to, program.bits(source, kind), kind)


def _parts(operand: Operand) -> tuple[str, ...]:
    return operand.parts if isinstance(operand, Vector) else (str(operand),)


def _access(instruction: Instruction) -> tuple[str, str, int]:
    """(space, type, elements) of a load or store."""
    space = instruction.operation[1].replace("__cta", "")
    (kind,) = instruction.types
    count = 1
    for part in instruction.operation[2:]:
        if part in ("v2", "v4"):
            count = int(part[1])
        elif part not in _HINTS and part != kind and not part.startswith(("L1__", "L2__")):
            raise NotImplementedError(part)
    if space not in ("global", "shared", "local", "param"):
        raise NotImplementedError(space)
    return space, kind, count


def _load(instruction: Instruction) -> Callable[[Program], None]:
    space, kind, count = _access(instruction)
    to, address = _parts(instruction.operands[0]), instruction.operands[1]
    size = TYPES[kind] // 8
    if space == "param":
        assert isinstance(address, Address)
        name = address.base

        def parameter(program: Program) -> None:
            bits = np.array([program.parameters[name]], np.uint64)
            program.write(to[0], bits, kind)

        return parameter
    if len(to) != count:
        raise NotImplementedError("a vector of another length")

    def load(program: Program) -> None:
        lanes = program.lanes()
        data = np.zeros((program.threads, count * size), np.uint8)
        at = program.addresses(address)[lanes]
        data[lanes] = program.read(space, at, count * size, lanes)
        values = data.view(UNSIGNED[8 * size])
        for i, register in enumerate(to):
            program.write(register, np.ascontiguousarray(values[:, i]), kind)

    return load


def _store(instruction: Instruction) -> Callable[[Program], None]:
    space, kind, count = _access(instruction)
    address, source = instruction.operands[0], _parts(instruction.operands[1])
    size = TYPES[kind] // 8
    if space == "param" or len(source) != count:
        raise NotImplementedError(space)

    def store(program: Program) -> None:
        lanes = program.lanes()
        width = UNSIGNED[8 * size]
        values = [program.all_threads(each, f"b{8 * size}").astype(width) for each in source]
        data = np.stack(values, axis=1).view(np.uint8)[lanes]
        program.store(space, program.addresses(address)[lanes], data, lanes)

    return store


def _copy(instruction: Instruction) -> Callable[[Program], None]:
    """cp.async: what is read now is in shared memory once its group has been waited for."""
    what = instruction.operation[2]
    if what == "commit_group":
        return lambda program: program.copies.append([])
    if what in ("wait_group", "wait_all"):
        left = int(str(instruction.operands[0]), 0) if what == "wait_group" else 0

        def wait(program: Program) -> None:
            if program.active is not None:
                raise NotImplementedError("some threads wait for their copies")
            if what == "wait_all":
                program.copies.append([])
            while len(program.copies) - 1 > left:
                for addresses, data, lanes in program.copies.pop(0):
                    program.shared.arrive(addresses, data, lanes // 32)

        return wait
    if instruction.operation[2:5] not in (("ca", "shared", "global"), ("cg", "shared", "global")):
        raise NotImplementedError(what)
    to, source, size_text, *read_text = instruction.operands
    size = int(str(size_text), 0)

    def copy(program: Program) -> None:
        lanes = program.lanes()
        data = np.zeros((program.threads, size), np.uint8)
        reading = lanes
        if read_text:
            lengths = program.all_threads(read_text[0], "u32")[lanes]
            if not np.isin(lengths, (0, size)).all():
                raise NotImplementedError("a part of the bytes")
            reading = lanes[lengths == size]
        data[reading] = program.memory.read(program.addresses(source)[reading], size)
        places = program.addresses(to)[lanes]
        program.shared.expect(places, size, lanes // 32)
        program.copies[-1].append((places, data[lanes], lanes))

    return copy


def _multiply(instruction: Instruction) -> Callable[[Program], None]:
    if instruction.operation[1:3] != ("sync", "aligned") or (instruction.operation[4:6]) != (
        "row",
        "col",
    ):
        raise NotImplementedError("mma")
    to, *sources = (_parts(each) for each in instruction.operands)
    result, kind, same, _ = instruction.types
    shape = instruction.operation[3]
    registers = (2, 1) if shape == "m16n8k8" and kind != "tf32" else (4, 2)
    if [len(each) for each in sources] != [*registers, 4] or kind != same:
        raise NotImplementedError("registers of mma")
    expected = {"m16n8k16": ("f16", "bf16"), "m16n8k32": ("s8",), "m16n8k8": ("tf32", "f16")}
    if kind not in expected[shape] or result != ("s32" if kind == "s8" else "f32"):
        raise NotImplementedError("types of mma")

    def run(program: Program) -> None:
        program.warps()
        a, b, c = ([program.all_threads(each, "b32") for each in part] for part in sources)
        for register, bits in zip(to, multiply(a, b, c, kind), strict=True):
            program.write(register, bits, "b32")

    return run


def _warpgroups(instruction: Instruction) -> Callable[[Program], None]:
    """wgmma: the product at once; shared memory is held until it is waited for."""
    name = instruction.operation[1]
    if name == "wait_group":
        left = int(str(instruction.operands[0]), 0)
        return lambda program: program.shared.let_go(left)
    if name == "commit_group":
        return lambda program: program.shared.held.append([])
    if name == "fence":
        return _nothing
    shape = instruction.operation[4]
    _, n, k = (int(each) for each in re.split("[mnk]", shape)[1:])
    result, kind, same = instruction.types
    if name != "mma_async" or kind != same or (result, kind) not in (
        ("f32", "bf16"), ("f32", "f16"), ("s32", "s8"),
    ):  # fmt: skip
        raise NotImplementedError("wgmma")
    to, left_side, right_side, keep, *flags = instruction.operands
    if kind != "s8" and flags[:2] != ["1", "1"]:
        raise NotImplementedError("wgmma with a sign")
    turned = [flag == "1" for flag in flags[2:]]
    registers, size = _parts(to), TYPES[kind] // 8
    in_registers = isinstance(left_side, Vector)
    if len(registers) != n // 2 or (in_registers and len(_parts(left_side)) != 4):
        raise NotImplementedError("registers of wgmma")

    def matrix(program: Program, operand: Operand, group: int, rows: int, turn: bool) -> Array:
        descriptors = program.all_threads(operand, "u64")[128 * group :][:128]
        if (descriptors != descriptors[0]).any():
            raise PtxError("the descriptors of a warpgroup differ")
        at = element_addresses(int(descriptors[0]), rows, k, size, turn).reshape(-1)
        found = program.shared.read(at, size, np.full(len(at), -2))  # -2: of no warp alone
        program.shared.hold(at, size)
        return of_bits(found.reshape(-1).view(UNSIGNED[8 * size]), kind).reshape(rows, k)

    def run(program: Program) -> None:
        if program.active is not None:
            raise PtxError("a warpgroup that is not together")
        add = program.all_threads(keep, "pred")
        sums = np.zeros((program.threads, n // 2))
        if add.any():
            old = np.stack([program.all_threads(each, result) for each in registers], axis=1)
            sums = np.where(add[:, None], old, 0).astype(np.float64)
        for group in range(program.threads // 128):
            threads = slice(128 * group, 128 * group + 128)
            if in_registers:
                words = [program.all_threads(each, "b32") for each in _parts(left_side)]
                bits = np.stack(words, axis=1)[threads].reshape(-1).view(UNSIGNED[8 * size])
                a = left_operand(of_bits(bits, kind).reshape(128, 4, -1))
            else:
                a = matrix(program, left_side, group, 64, turned[0] if len(turned) == 2 else False)
            b = matrix(program, right_side, group, n, turned[-1] if turned else False)
            sums[threads] += fragments(a.astype(np.float64) @ b.T)
        for i, register in enumerate(registers):
            program.write(register, to_bits(sums[:, i], result), result)

    return run


def _matrices(instruction: Instruction) -> tuple[int, bool]:
    """(how many, transposed?) of ldmatrix and stmatrix."""
    rest = [p for p in instruction.operation[1:] if p not in ("sync", "aligned", "m8n8", "b16")]
    number, *others = rest
    transposed = others[0] == "trans"
    if others[transposed:] not in (["shared"], ["shared__cta"]):
        raise NotImplementedError("matrices")
    return int(number[1]), transposed


def _load_matrices(instruction: Instruction) -> Callable[[Program], None]:
    count, transposed = _matrices(instruction)
    to, address = _parts(instruction.operands[0]), instruction.operands[1]

    def load(program: Program) -> None:
        warps = program.warps()
        at = program.addresses(address).reshape(-1, 32)[warps, : 8 * count]
        rows = np.zeros((program.threads // 32, 8 * count, 16), np.uint8)
        found = program.shared.read(at.reshape(-1), 16, np.repeat(warps, 8 * count))
        rows[warps] = found.reshape(len(warps), -1, 16)
        for register, bits in zip(to, load_matrices(rows, count, transposed), strict=True):
            program.write(register, bits, "b32")

    return load


def _store_matrices(instruction: Instruction) -> Callable[[Program], None]:
    count, transposed = _matrices(instruction)
    address, source = instruction.operands[0], _parts(instruction.operands[1])

    def store(program: Program) -> None:
        warps = program.warps()
        at = program.addresses(address).reshape(-1, 32)[warps, : 8 * count]
        rows = store_matrices([program.all_threads(each, "b32") for each in source], transposed)
        data = rows[warps].reshape(-1, 16)
        program.shared.write(at.reshape(-1), data, np.repeat(warps, 8 * count))

    return store


def _shuffle(instruction: Instruction) -> Callable[[Program], None]:
    _, sync, mode, kind = instruction.operation
    to, a, b, c, members = instruction.operands
    if (sync, kind, members) != ("sync", "b32", "-1") or "|" in str(to):
        raise NotImplementedError("shfl")

    def run(program: Program) -> None:
        program.warps()
        operands = [program.all_threads(each, "u32") for each in (a, b, c)]
        program.write(to, shuffle(mode, *operands), "u32")

    return run


def _reduce(instruction: Instruction) -> Callable[[Program], None]:
    _, sync, name, kind = instruction.operation
    to, a, members = instruction.operands
    if sync != "sync":
        raise NotImplementedError("redux")

    def run(program: Program) -> None:
        program.warps()
        if (program.all_threads(members, "u32")[program.lanes()] != 0xFFFFFFFF).any():
            raise NotImplementedError("some of a warp")
        program.write(to, to_bits(reduce(name, program.all_threads(a, kind)), kind), kind)

    return run


def _atomic(instruction: Instruction) -> Callable[[Program], None]:
    _, space, *modifiers, name, kind = instruction.operation
    if space != "global" or name != "add" or kind not in ("u32", "s32"):
        raise NotImplementedError("atom")
    if not set(modifiers) <= _HINTS | {"acq_rel"}:
        raise NotImplementedError("atom")
    to, address, operand = instruction.operands

    def add(program: Program) -> None:
        old = np.zeros(program.threads, np.uint32)
        at, more = program.addresses(address), program.all_threads(operand, "u32")
        for lane in program.lanes():
            if "acq_rel" in modifiers and np.delete(program.stored, lane).any():
                raise PtxError("it is not known to come after what other threads stored")
            here = at[lane : lane + 1]
            value = program.memory.read(here, 4)
            old[lane] = value.view(np.uint32)[0, 0]
            total = (old[lane : lane + 1] + more[lane]).view(np.uint8)
            program.memory.write(here, total[None])
        program.write(_parts(to)[0], old, "u32")

    return add


def _together(instruction: Instruction) -> Callable[[Program], None]:
    if instruction.operation != ("bar", "warp", "sync") or instruction.operands != ("-1",):
        raise NotImplementedError("bar")

    def check(program: Program) -> None:
        program.warps()

    return check


def _fence(instruction: Instruction) -> Callable[[Program], None]:
    return _nothing


def _dependencies(instruction: Instruction) -> Callable[[Program], None]:
    if instruction.operation[1:] == ("launch_dependents",):
        return _nothing
    if instruction.operation[1:] != ("wait",):
        raise NotImplementedError("griddepcontrol")

    def wait(program: Program) -> None:
        if program.active is not None:
            raise PtxError("some threads wait for launches, and others do not")
        program.memory.waited = True

    return wait


_RULES: dict[str, Callable[[Instruction], Callable[[Program], None]]] = {
    "mov": _move, "ld": _load, "st": _store, "cp": _copy, "mma": _multiply, "wgmma": _warpgroups,
    "ldmatrix": _load_matrices, "stmatrix": _store_matrices, "shfl": _shuffle, "redux": _reduce,
    "atom": _atomic, "bar": _together, "fence": _fence, "membar": _fence,
    "griddepcontrol": _dependencies,
}  # fmt: skip
