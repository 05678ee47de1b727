"""The DLPack protocol without torch in the runtime, and with torch on its other side."""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import pytest
import torch

from graphwright.runtime import dlpack
from graphwright.runtime.dlpack import DeviceTensor, is_on_gpu, read_tensor
from graphwright.runtime.errors import RequestError


class OnGpu:
    """A host's tensor that says it is on a GPU."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, 0

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        return self.tensor.__dlpack__()


class OnHost:
    """A GPU's tensor in memory of the host, as torch takes it."""

    def __init__(self, tensor: DeviceTensor) -> None:
        self.tensor = tensor

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU, 0

    def __dlpack__(self, **_: Any) -> Any:
        capsule = self.tensor.__dlpack__()
        pointer = dlpack._api.PyCapsule_GetPointer(capsule, b"dltensor")
        ctypes.cast(pointer, ctypes.POINTER(dlpack._Managed)).contents.tensor.device_type = 1
        return capsule


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_token_ids_are_read_through_views(dtype: torch.dtype) -> None:
    ids = torch.arange(40, dtype=dtype).reshape(4, 10)
    for tensor in (ids[2, 3:8], ids[1:2], ids[0, :1]):
        found = read_tensor(OnGpu(tensor), ctypes.string_at)
        assert found == tensor.flatten().tolist()
    assert is_on_gpu(OnGpu(ids)) and not is_on_gpu(ids) and not is_on_gpu([1, 2])


@pytest.mark.parametrize(
    "tensor", [torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3), torch.arange(8)[::2]], ids=str
)
def test_what_is_no_row_of_ids_is_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(RequestError, match="must be a dense row of int32 or int64, not shape"):
        read_tensor(OnGpu(tensor), ctypes.string_at)


def test_memory_lives_as_long_as_what_was_made_of_it() -> None:
    memory, freed = (ctypes.c_float * 6)(*range(6)), list[int]()
    address = ctypes.addressof(memory)
    tensor = DeviceTensor(address, (2, 3), freed.append)
    taken = torch.utils.dlpack.from_dlpack(OnHost(tensor))
    unused = tensor.__dlpack__()
    assert tensor.__dlpack_device__() == (dlpack.CUDA, 0)
    del tensor
    assert torch.equal(taken, torch.arange(6.0).reshape(2, 3))
    del taken
    gc.collect()
    assert not freed
    del unused
    assert freed == [address] and not dlpack._handed
