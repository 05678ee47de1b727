"""NVIDIA's driver API as far as it is needed, its status codes as exceptions.

The package cuda-bindings calls the driver, which is not part of it: a machine without one gets one
clear sentence.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from graphwright.runtime.errors import ArtifactError

__all__ = ["Driver", "NoGpuError"]


class NoGpuError(ArtifactError):
    """There is no GPU, or no driver for it: `reason`."""

    def __init__(self, reason: str) -> None:
        self.reason = reason.rstrip(".")
        super().__init__(
            f"this artifact is for an NVIDIA GPU, and none can be used here: {self.reason}. It "
            "needs a GPU and NVIDIA's driver; compile with another --target to run on the CPU."
        )


class Driver:
    """The first GPU, current for this thread, and one stream on which all work is ordered.

    api: the module cuda.bindings.driver, or what stands for it in tests. Addresses are integers.
    Raises NoGpuError, ArtifactError without cuda-bindings, RuntimeError when a call fails.
    """

    def __init__(self, api: Any = None) -> None:
        self._api = _load() if api is None else api
        try:  # cuda-bindings looks for the driver's library at the first call
            self._call("cuInit", 0)
            count = int(self._call("cuDeviceGetCount"))
        except (RuntimeError, ImportError, OSError) as error:
            raise NoGpuError(str(error)) from error
        if count == 0:
            raise NoGpuError("the driver sees no GPU")
        self._device = self._call("cuDeviceGet", 0)
        self._call("cuCtxSetCurrent", self._call("cuDevicePrimaryCtxRetain", self._device))
        self._stream = self._call("cuStreamCreate", 1)  # CU_STREAM_NON_BLOCKING

    def capability(self) -> int:
        """The compute capability, 90 for 9.0."""
        kinds = self._api.CUdevice_attribute
        major, minor = (
            int(self._call("cuDeviceGetAttribute", getattr(kinds, name), self._device))
            for name in (
                "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR",
                "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR",
            )
        )
        return 10 * major + minor

    def name(self) -> str:
        """What the GPU is called."""
        found = self._call("cuDeviceGetName", 256, self._device)
        text = found.decode(errors="replace") if isinstance(found, bytes) else str(found)
        return text.rstrip("\0 ")

    # ---- memory

    def allocate(self, size: int) -> int:
        """Device memory."""
        return int(self._call("cuMemAlloc", max(size, 1)))

    def allocate_pinned(self, size: int) -> int:
        """Host memory that the GPU copies from and to by itself, and that kernels reach."""
        return int(self._call("cuMemHostAlloc", max(size, 1), 2))  # CU_MEMHOSTALLOC_DEVICEMAP

    def mapped(self, host: int) -> int:
        """The address of pinned host memory for kernels."""
        return int(self._call("cuMemHostGetDevicePointer", host, 0))

    def free(self, address: int) -> None:
        """Gives device memory back."""
        self._call("cuMemFree", address)

    def free_pinned(self, address: int) -> None:
        """Gives pinned host memory back."""
        self._call("cuMemFreeHost", address)

    def copy_in(self, device: int, host: int, size: int) -> None:
        """Host to device, in the stream."""
        self._call("cuMemcpyHtoDAsync", device, host, size, self._stream)

    def copy_out(self, host: int, device: int, size: int) -> None:
        """Device to host, in the stream."""
        self._call("cuMemcpyDtoHAsync", host, device, size, self._stream)

    def write(self, device: int, data: bytes) -> None:
        """Few bytes to the device; they are there on return."""
        memory = ctypes.create_string_buffer(data, len(data))
        self.copy_in(device, ctypes.addressof(memory), len(data))
        self.wait()

    def read(self, device: int, size: int) -> bytes:
        """Bytes from the device, after all that is in the stream."""
        memory = ctypes.create_string_buffer(max(size, 1))
        self.copy_out(ctypes.addressof(memory), device, size)
        self.wait()
        return memory.raw[:size]

    def copy_within(self, target: int, source: int, size: int) -> None:
        """From device to device, in the stream."""
        self._call("cuMemcpyDtoDAsync", target, source, size, self._stream)

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream)

    def clear(self, device: int, size: int) -> None:
        """Zeros, in the stream."""
        self._call("cuMemsetD8Async", device, 0, size, self._stream)

    def wait(self) -> None:
        """Until all that is in the stream is done."""
        self._call("cuStreamSynchronize", self._stream)

    def event(self) -> Any:
        """A place in the stream that can be waited for, once `mark` has put it there."""
        return self._call("cuEventCreate", 2)  # CU_EVENT_DISABLE_TIMING

    def mark(self, event: Any) -> None:
        """Puts the event behind all that is in the stream."""
        self._call("cuEventRecord", event, self._stream)

    def wait_for(self, event: Any) -> None:
        """Until all that was in front of the event is done, whatever came behind it."""
        self._call("cuEventSynchronize", event)

    # ---- code

    def load(self, cubin: bytes, symbol: str, shared: int) -> Any:
        """The function `symbol` of a cubin, allowed to use so many bytes of shared memory."""
        module = self._call("cuModuleLoadData", cubin)
        function = self._call("cuModuleGetFunction", module, symbol.encode())
        if shared > 48 << 10:  # more must be asked for
            kind = self._api.CUfunction_attribute
            name = kind.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call("cuFuncSetAttribute", function, name, shared)
        return function

    def launch(
        self, function: Any, grid: Sequence[int], threads: int, shared: int,
        pointers: Sequence[int], early: bool,
    ) -> None:  # fmt: skip
        """Into the stream, or into the graph that is being captured. The pointers are copied.

        early: it may begin as soon as the launch in front lets it, if that is a launch, and waits
        by itself (backends/triton/kernels/early.py says why that is safe). Any other begins when
        all in front of it is done.
        """
        values = (ctypes.c_uint64 * len(pointers))(*pointers)
        size = ctypes.sizeof(ctypes.c_uint64)
        addresses = (ctypes.c_void_p * len(pointers))(
            *(ctypes.addressof(values) + size * i for i in range(len(pointers)))
        )
        if not early:
            self._call(
                "cuLaunchKernel", function, *grid, threads, 1, 1, shared, self._stream,
                ctypes.addressof(addresses), 0,
            )  # fmt: skip
            return
        config = self._api.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
        config.sharedMemBytes, config.hStream = shared, self._stream
        config.attrs, config.numAttrs = [self._begins_early()], 1
        self._call("cuLaunchKernelEx", config, function, ctypes.addressof(addresses), 0)

    def _begins_early(self) -> Any:
        """The attribute of a programmatic dependent launch."""
        attribute = self._api.CUlaunchAttribute()
        kinds = self._api.CUlaunchAttributeID
        attribute.id = kinds.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        return attribute

    def capture(self) -> None:
        """What is launched from here on is recorded instead of run."""
        mode = self._api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._stream, mode)

    def captured(self) -> Any:
        """The graph of what was recorded, ready to run."""
        graph = self._call("cuStreamEndCapture", self._stream)
        ready = self._call("cuGraphInstantiate", graph, 0)
        self._call("cuGraphDestroy", graph)
        return ready

    def replay(self, graph: Any) -> None:
        """Runs a captured graph in the stream."""
        self._call("cuGraphLaunch", graph, self._stream)

    def seconds(self, start: Callable[[], None]) -> float:
        """How long the GPU takes for what `start` puts into the stream."""
        events = [self._call("cuEventCreate", 0) for _ in range(2)]
        try:
            self._call("cuEventRecord", events[0], self._stream)
            start()
            self._call("cuEventRecord", events[1], self._stream)
            self._call("cuEventSynchronize", events[1])
            return float(self._call("cuEventElapsedTime", *events)) / 1000
        finally:
            for event in events:
                self._call("cuEventDestroy", event)

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *results = getattr(self._api, name)(*arguments)
        if int(status) != 0:
            text = getattr(status, "name", str(status))
            raise RuntimeError(f"the CUDA driver's {name} failed: {text} ({int(status)}).")
        return results[0] if results else None


def _load() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise ArtifactError(
            "this artifact is for an NVIDIA GPU: running it needs the package cuda-bindings "
            "(pip install 'graphwright[cuda]')."
        ) from error
    return driver
