"""Stands for cuda.bindings.driver: memory is the host's, kernels run in Triton's interpreter.

Addresses are real ones, so that copies copy and what a launch packs into its parameters can be read
back; every call is recorded by name. What goes into the stream runs when somebody waits for it, and
no further than that: whoever reads results too soon, or overwrites inputs, gets other numbers.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch

from graphwright.backends.triton.interpret import prepare
from graphwright.backends.triton.kernels.kernel import TritonKernel

__all__ = ["FakeCuda"]

OK = 0


class FakeCuda:
    """cubins: the kernel that each cubin is of. capability: of the GPU, (8, 0). interprets: are
    launches run, or only recorded.
    """

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=0,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=1,
    )
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared")
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUlaunchConfig = SimpleNamespace
    CUlaunchAttributeID = SimpleNamespace(
        CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION="early"
    )

    def __init__(
        self, cubins: Mapping[bytes, TritonKernel], capability: tuple[int, int] = (8, 0)
    ) -> None:
        self.calls: list[str] = []
        self.copied: list[int] = []  # bytes of each copy to the host
        self.launches: list[tuple[str, tuple[int, int, int], int, int]] = []
        self.early: list[str] = []  # kernels of launches that may begin early
        self.devices = 1
        self.interprets = True
        self.elapsed: Callable[[list[tuple[str, tuple[int, int, int], int, int]]], float] = (
            lambda launches: 1.0 * len(launches)
        )
        self._cubins, self._capability = cubins, capability
        self._memory: dict[int, Any] = {}
        self._graph: list[Callable[[], None]] | None = None
        self._stream: deque[Callable[[], object]] = deque()
        self._events: list[int] = []  # how much was ever in front of each in the stream
        self._done = 0  # of the stream

    def __getattr__(self, name: str) -> Any:
        """The calls that only have to succeed."""
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*_: Any) -> tuple[int, ...]:
            self.calls.append(name)
            return (OK, 0) if name in _GIVING else (OK,)

        return call

    def cuDeviceGetCount(self) -> tuple[int, int]:
        return OK, self.devices

    def cuDeviceGetAttribute(self, attribute: int, device: int) -> tuple[int, int]:
        return OK, self._capability[attribute]

    def cuDeviceGetName(self, length: int, device: int) -> tuple[int, bytes]:
        return OK, b"Stand-in".ljust(length, b"\0")

    def cuMemFree(self, address: int) -> tuple[int]:
        self._run(self._done + len(self._stream))
        del self._memory[address]
        return (OK,)

    def cuEventCreate(self, flags: int) -> tuple[int, int]:
        self._events.append(0)
        return OK, len(self._events) - 1

    def cuEventRecord(self, event: int, stream: int) -> tuple[int]:
        self.calls.append("mark")
        self._events[event] = self._done + len(self._stream)
        return (OK,)

    def cuEventSynchronize(self, event: int) -> tuple[int]:
        self.calls.append("wait for mark")
        self._run(self._events[event])
        return (OK,)

    def cuStreamSynchronize(self, stream: int) -> tuple[int]:
        self.calls.append("wait")
        self._run(self._done + len(self._stream))
        return (OK,)

    def _run(self, end: int) -> None:
        while self._done < end:
            self._done += 1
            self._stream.popleft()()

    def cuEventElapsedTime(self, start: int, end: int) -> tuple[int, float]:
        """In ms: what `elapsed` says of the launches since the last time."""
        launches, self.launches = self.launches, []
        return OK, self.elapsed(launches)

    def cuMemAlloc(self, size: int) -> tuple[int, int]:
        """Filled with NaN of every type; 256-byte aligned, as the driver's."""
        memory = (ctypes.c_uint8 * (size + 256))()
        ctypes.memset(memory, 0xFF, size + 256)
        address = -(-ctypes.addressof(memory) // 256) * 256
        self._memory[address] = (memory, size)
        return OK, address

    def cuMemHostAlloc(self, size: int, flags: int) -> tuple[int, int]:
        return self.cuMemAlloc(size)

    def cuMemHostGetDevicePointer(self, host: int, flags: int) -> tuple[int, int]:
        return OK, host

    def cuMemcpyHtoDAsync(self, device: int, host: int, size: int, stream: int) -> tuple[int]:
        self.calls.append("copy-in")
        self._stream.append(lambda: ctypes.memmove(device, host, size))
        return (OK,)

    def cuMemcpyDtoHAsync(self, host: int, device: int, size: int, stream: int) -> tuple[int]:
        self.calls.append("copy-out")
        self.copied.append(size)
        self._stream.append(lambda: ctypes.memmove(host, device, size))
        return (OK,)

    def cuMemcpyDtoDAsync(self, target: int, source: int, size: int, stream: int) -> tuple[int]:
        self.calls.append("copy-within")
        self._stream.append(lambda: ctypes.memmove(target, source, size))
        return (OK,)

    def cuMemsetD8Async(self, device: int, value: int, size: int, stream: int) -> tuple[int]:
        self._stream.append(lambda: ctypes.memset(device, value, size))
        return (OK,)

    def cuModuleLoadData(self, code: bytes) -> tuple[int, bytes]:
        return OK, code

    def cuModuleGetFunction(self, module: bytes, symbol: bytes) -> tuple[int, TritonKernel]:
        return OK, self._cubins[module]

    def cuLaunchKernel(
        self, kernel: TritonKernel, x: int, y: int, z: int, threads: int, _y: int, _z: int,
        shared: int, stream: int, parameters: int, extra: int,
    ) -> tuple[int]:  # fmt: skip
        count = len(kernel.pointers)
        slots = (ctypes.c_void_p * (count + 2)).from_address(parameters)
        values = [ctypes.c_uint64.from_address(slot or 0).value for slot in slots]
        assert values[count:] == [0, 0], "Triton's own two pointers are null"
        self.launches.append((kernel.name, (x, y, z), threads, shared))

        def run() -> None:
            self._interpret(kernel, (x, y, z), values[:count])

        if self._graph is None:
            self.calls.append("launch")
            self._stream.append(run)
        else:
            self._graph.append(run)
        return (OK,)

    @staticmethod
    def CUlaunchAttribute() -> SimpleNamespace:
        return SimpleNamespace(id=None, value=SimpleNamespace())

    def cuLaunchKernelEx(
        self, config: SimpleNamespace, kernel: TritonKernel, parameters: int, extra: int
    ) -> tuple[int]:
        """An early launch; here it begins when it is its turn."""
        [attribute] = config.attrs
        assert attribute.id == "early" and config.numAttrs == 1
        assert attribute.value.programmaticStreamSerializationAllowed == 1
        self.early.append(kernel.name)
        return self.cuLaunchKernel(
            kernel, config.gridDimX, config.gridDimY, config.gridDimZ, config.blockDimX,
            config.blockDimY, config.blockDimZ, config.sharedMemBytes, config.hStream, parameters,
            extra,
        )  # fmt: skip

    def cuStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        self.calls.append("capture")
        self._graph = []
        return (OK,)

    def cuStreamEndCapture(self, stream: int) -> tuple[int, Any]:
        graph, self._graph = self._graph, None
        return OK, graph

    def cuGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, Any]:
        return OK, list(graph)

    def cuGraphLaunch(self, graph: Any, stream: int) -> tuple[int]:
        self.calls.append("replay")
        self._stream.extend(graph)
        return (OK,)

    def _interpret(
        self, kernel: TritonKernel, grid: tuple[int, int, int], addresses: list[int]
    ) -> None:
        if not self.interprets:
            return
        named = {}
        for (name, dtype), address in zip(kernel.pointers, addresses, strict=True):
            kind = getattr(torch, dtype)
            count = self._left(address) // kind.itemsize
            memory = (ctypes.c_uint8 * (count * kind.itemsize)).from_address(address)
            named[name] = torch.frombuffer(memory, dtype=kind)
        prepare()
        kernel.function[grid](**named, **kernel.constants)

    def _left(self, address: int) -> int:
        """Bytes from an address to the end of its allocation."""
        for start, (_, size) in self._memory.items():
            if start <= address < start + size:
                return int(start + size - address)
        raise AssertionError(f"{address} lies in no allocation")


_GIVING = frozenset({"cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuStreamCreate"})
