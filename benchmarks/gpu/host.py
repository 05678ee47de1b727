"""What the engine itself costs a decode step: its time over a driver that does nothing.

python benchmarks/gpu/host.py ARTIFACT        # for a GPU, with or without weights; needs none

Steps overlap: all of this time passes while the GPU computes the step in front, so that it waits
for the host only where its own step is shorter. With --alone a step is started when all of the one
in front has been looked at, as where the host chooses tokens: then the GPU waits for all of it.
With --drawn tokens are drawn, by the steps.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from graphwright.runtime.artifact import Artifact
from graphwright.runtime.cuda.driver import Driver
from graphwright.runtime.cuda.library import CudaLibrary
from graphwright.runtime.engine import Engine
from graphwright.runtime.sampling_params import SamplingParams

__all__ = ["IdleDriver", "main", "step_seconds"]

PROMPT, STEPS = 1024, 60
SEQUENCES = (1, 16, 64)


class IdleDriver:
    """Stands for cuda.bindings.driver on a GPU of sm_CAPABILITY; tokens are always 0."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=0,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=1,
    )
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=0)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUlaunchConfig = SimpleNamespace
    CUlaunchAttributeID = SimpleNamespace(
        CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION="early"
    )

    def __init__(self, capability: int) -> None:
        self._capability = divmod(capability, 10)
        self._kept: list[Any] = []

    def CUlaunchAttribute(self) -> SimpleNamespace:
        return SimpleNamespace(value=SimpleNamespace())

    def cuDeviceGetCount(self) -> tuple[int, int]:
        return 0, 1

    def cuDeviceGetAttribute(self, attribute: int, device: int) -> tuple[int, int]:
        return 0, self._capability[attribute]

    def cuMemHostAlloc(self, size: int, flags: int) -> tuple[int, int]:
        self._kept.append((ctypes.c_uint8 * size)())
        return 0, ctypes.addressof(self._kept[-1])

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*_: Any) -> tuple[int, int]:
            return 0, 0

        setattr(self, name, call)
        return call


def step_seconds(
    artifact: Artifact, sequences: int, overlaps: bool = True, drawn: bool = False
) -> float:
    """The median of steps that decode a token of each of `sequences` sequences behind PROMPT, or as
    much of it as the model's context takes.
    """
    chip = artifact.json("gpu/launches.json")["chips"][-1]
    driver = Driver(IdleDriver(int(chip.removeprefix("sm_"))))
    library = CudaLibrary(artifact, driver, overlaps=overlaps)
    limit = artifact.json("plan.json")["max_context"] or PROMPT + 2 * STEPS
    context = min(limit, PROMPT + 2 * STEPS)
    engine = Engine(artifact, library=library, max_sequences=SEQUENCES[-1], context=context)
    params = SamplingParams(
        temperature=float(drawn), top_p=0.9, max_tokens=2 * STEPS, ignore_eos=True
    )
    requests = [engine.submit([1] * (context - 2 * STEPS - 1), params) for _ in range(sequences)]
    while any(not request.generated for request in requests):
        engine.step()
    taken = []
    for _ in range(STEPS):
        start = time.perf_counter()
        engine.step()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--alone", action="store_true", help="steps that do not overlap")
    parser.add_argument("--drawn", action="store_true", help="temperature 1 and top_p 0.9")
    options = parser.parse_args()
    artifact = Artifact.open(options.artifact, any_cpu=True, verify=False)
    for sequences in SEQUENCES:
        taken = 1e6 * step_seconds(artifact, sequences, not options.alone, options.drawn)
        print(f"{sequences:3} sequences: {taken:6.1f} us a step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
