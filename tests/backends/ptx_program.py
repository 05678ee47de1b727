"""A program that runs: its registers, its shared memory, and which of its threads are active."""

from __future__ import annotations

import numpy as np
from ptx_memory import GlobalMemory, LocalMemory, PtxError, SharedMemory
from ptx_parse import TYPES, Address, Entry, Operand
from ptx_values import UNSIGNED, Array, as_type, constant, of_bits

__all__ = ["Program"]


class Program:
    """One program. active: the threads that run, None if all do."""

    def __init__(
        self, entry: Entry, memory: GlobalMemory, shared: int, grid: tuple[int, int, int],
        program: tuple[int, int, int], parameters: dict[str, int],
    ) -> None:  # fmt: skip
        self.declared = -(-shared // 16) * 16  # where arrays lie that assembly declares
        self.entry, self.memory = entry, memory
        self.shared = SharedMemory(self.declared + entry.shared_bytes)
        self.parameters, self.threads, self.place = parameters, entry.threads, program
        self.active: Array | None = None
        self.local = LocalMemory(self.threads, entry.local_bytes)
        self.carry = np.zeros(self.threads, np.uint64)
        self.registers: dict[str, Array] = {}
        self.special = {"%tid.x": np.arange(self.threads, dtype=np.uint32)}
        for axis, own, all in zip("xyz", program, grid, strict=True):
            self.special[f"%ctaid.{axis}"] = np.array([own], np.uint32)
            self.special[f"%nctaid.{axis}"] = np.array([all], np.uint32)
            self.special.setdefault(f"%tid.{axis}", np.zeros(1, np.uint32))
        self.stored = np.zeros(self.threads, np.bool_)  # to global memory, since the last barrier
        self.copies: list[list[tuple[Array, Array, Array]]] = [
            []
        ]  # groups of cp.async, the last open

    def bits(self, operand: Operand, kind: str) -> Array:
        """Of a register, at least as wide as `kind`, or a constant ([1])."""
        if not isinstance(operand, str):
            raise NotImplementedError(str(operand))
        if operand[0] == "!":
            negated: Array = ~self.bits(operand[1:], kind)
            return negated
        if operand in self.entry.widths:
            if operand not in self.registers:
                raise PtxError(f"{operand} was never written")
            return self.registers[operand]
        if operand in self.special:
            return self.special[operand]
        if operand == "global_smem" or operand in self.entry.locals:
            start = self.entry.locals.get(operand, 0)
            return np.full(1, start, UNSIGNED[TYPES[kind]])
        if operand in self.entry.shared:
            return np.full(1, self.declared + self.entry.shared[operand], UNSIGNED[TYPES[kind]])
        if operand in self.entry.constants:
            return np.full(1, self.memory.address(operand), np.uint64)
        return constant(operand, kind)

    def value(self, operand: Operand, kind: str) -> Array:
        return of_bits(self.bits(operand, kind), kind)

    def packed(self, operand: Operand, kind: str) -> Array:
        """all_threads; of a register that no instruction writes, which LLVM packs with others where
        nobody reads the result's part: anything.
        """
        if operand in self.entry.widths and operand not in self.entry.written:
            return np.full(self.threads, 0x5A5A, UNSIGNED[TYPES[kind]])
        return self.all_threads(operand, kind)

    def all_threads(self, operand: Operand, kind: str) -> Array:
        """value, [threads]."""
        found = self.value(operand, kind)
        return found if len(found) == self.threads else np.repeat(found, self.threads)

    def write(self, register: Operand, bits: Array, kind: str) -> None:
        """To the active threads."""
        if register == "_":
            return
        assert isinstance(register, str)
        bits = as_type(bits, kind, self.entry.widths[register])
        if len(bits) != self.threads:
            bits = np.repeat(bits, self.threads)
        if self.active is not None:
            old = self.registers.get(register)
            if old is None:
                old = np.full(self.threads, 0x5A, bits.dtype)
            bits = np.where(self.active, bits, old)
        self.registers[register] = bits

    def lanes(self) -> Array:
        """The active threads' numbers."""
        if self.active is None:
            return np.arange(self.threads)
        return np.flatnonzero(self.active)

    def warps(self) -> Array:
        """The active warps' numbers; all threads of a warp must be active, or none."""
        if self.active is None:
            return np.arange(self.threads // 32)
        together = self.active.reshape(-1, 32)
        if (together.any(1) != together.all(1)).any():
            raise PtxError("a warp that is not together")
        return np.flatnonzero(together.any(1))

    def addresses(self, address: Operand) -> Array:
        """[threads] int64."""
        assert isinstance(address, Address)
        if address.base == "global_smem":
            return np.full(self.threads, address.offset, np.int64)
        base = self.bits(address.base, "b64")
        if len(base) != self.threads:
            base = np.repeat(base, self.threads)
        return base.astype(np.int64) + address.offset

    def read(self, space: str, addresses: Array, size: int, lanes: Array) -> Array:
        if space == "global":
            return self.memory.read(addresses, size)
        if space == "local":
            return self.local.read(addresses, size, lanes)
        return self.shared.read(addresses, size, lanes // 32)

    def store(self, space: str, addresses: Array, data: Array, lanes: Array) -> None:
        if space == "global":
            self.memory.write(addresses, data)
            self.stored[lanes] = True
        elif space == "local":
            self.local.write(addresses, data, lanes)
        else:
            self.shared.write(addresses, data, lanes // 32)
