"""Tensors of other libraries on a GPU, by the DLPack protocol: read and handed out without torch.

The protocol is two methods, `__dlpack__` and `__dlpack_device__`; what travels is a pointer to a C
structure in a capsule. Source: the Python array API standard, and dlpack.h of DLPack 0.8.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Protocol

from graphwright.runtime.errors import RequestError

__all__ = ["CUDA", "DeviceTensor", "Exporter", "is_on_gpu", "read_tensor"]

CPU, CUDA = 1, 2  # device types
_INT, _FLOAT = 0, 2  # type codes
_NAME = b"dltensor"


class Exporter(Protocol):
    """What has the protocol's two methods."""

    def __dlpack__(self, *, stream: int | None = None) -> Any: ...

    def __dlpack_device__(self) -> tuple[int, int]: ...


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]

_api = ctypes.pythonapi
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_api.PyCapsule_IsValid.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
_CapsuleEnd = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_api_at: Any = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)


def is_on_gpu(value: Any) -> bool:
    """Is it a tensor in a GPU's memory?"""
    found = getattr(value, "__dlpack_device__", None)
    return found is not None and int(found()[0]) == CUDA


def read_tensor(tensor: Exporter, copy: Callable[[int, int], bytes], stream: int = 0) -> list[int]:
    """The numbers of a dense int32 or int64 tensor, of one row or with ones before it.

    copy(address, bytes) fetches from the device. stream: where what the tensor waits for must be
    ordered before. Raises RequestError for other tensors.
    """
    capsule = tensor.__dlpack__(stream=stream or None)
    pointer = _api.PyCapsule_GetPointer(capsule, _NAME)
    found = ctypes.cast(pointer, ctypes.POINTER(_Managed)).contents.tensor
    shape = [found.shape[i] for i in range(found.ndim)]
    count = shape[-1] if shape else 0
    dense = not found.strides or count <= 1 or found.strides[found.ndim - 1] == 1
    flat = bool(shape) and all(size == 1 for size in shape[:-1])
    whole = found.code == _INT and found.bits in (32, 64) and found.lanes == 1
    if not (dense and flat and whole):
        raise RequestError(
            f"token ids on a GPU must be a dense row of int32 or int64, not shape {tuple(shape)} "
            f"of type code {found.code} with {found.bits} bits."
        )
    size = found.bits // 8
    data = copy((found.data or 0) + found.byte_offset, count * size)
    kind = ctypes.c_int32 if size == 4 else ctypes.c_int64
    return list((kind * count).from_buffer_copy(data))


class DeviceTensor:
    """Dense float32 numbers on a GPU, for `torch.from_dlpack` and its like.

    free(address) gives the memory back when this and all tensors made of it are gone.
    """

    def __init__(
        self, address: int, shape: tuple[int, ...], free: Callable[[int], None], device: int = 0
    ) -> None:
        self.address, self.shape = address, shape
        self._owner = _Owner(address, free)
        self._device = device

    def __dlpack_device__(self) -> tuple[int, int]:
        """(CUDA, which one)."""
        return CUDA, self._device

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        """A capsule. What the tensor holds is complete: no stream has to wait."""
        managed = _Managed()
        sizes = (ctypes.c_int64 * len(self.shape))(*self.shape)
        tensor = managed.tensor
        tensor.data, tensor.device_type, tensor.device_id = self.address, CUDA, self._device
        tensor.ndim, tensor.code, tensor.bits, tensor.lanes = len(self.shape), _FLOAT, 32, 1
        tensor.shape = ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64))
        managed.deleter = _delete
        address = ctypes.addressof(managed)
        _handed[address] = (managed, sizes, self._owner)
        return _api.PyCapsule_New(address, _NAME, ctypes.cast(_end, ctypes.c_void_p))


class _Owner:
    def __init__(self, address: int, free: Callable[[int], None]) -> None:
        self._address, self._free = address, free

    def __del__(self) -> None:
        self._free(self._address)


_handed: dict[int, Any] = {}  # what consumers hold, by the structure's address


def _release(managed: Any) -> None:
    _handed.pop(ctypes.addressof(managed.contents), None)


def _drop(capsule: int) -> None:
    """Of a capsule that nobody consumed."""
    if _api.PyCapsule_IsValid(capsule, _NAME):
        _handed.pop(_api_at(capsule, _NAME), None)


_delete, _end = _Deleter(_release), _CapsuleEnd(_drop)
