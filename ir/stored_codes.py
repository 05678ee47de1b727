"""Weights that are stored as small integers, and whether a scheme can keep them as they are."""

from __future__ import annotations

from typing import Any

import torch

from graphwright.ir.schemes import Scheme
from graphwright.ir.weights import Expression, Weight

__all__ = ["from_codes", "kept_parts", "stored_scheme"]

aten = torch.ops.aten
_ELEMENTS_AT_ONCE = 1 << 20  # that have a scale of their own in memory


def from_codes(
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | int,
    index: torch.Tensor | None = None,
    *,
    bits: int,
) -> torch.Tensor:
    """(codes - zero) * scale, float32 [N, K].

    codes: uint8 or int8 [N, K], integers of `bits` bits. scale: float [N, G]; zero: integers of the
    same shape, or one for all. index: int [K], the group of each input; None: G equal groups, one
    behind the other.
    """
    values = codes.to(torch.float32, memory_format=torch.contiguous_format)
    if index is not None:
        chosen, step = index.to(torch.int64), max(1, _ELEMENTS_AT_ONCE // len(index))
        for begin in range(0, len(values), step):
            part = slice(begin, begin + step)
            zeros = zero[part].float()[:, chosen] if isinstance(zero, torch.Tensor) else float(zero)
            values[part].sub_(zeros).mul_(scale[part].float()[:, chosen])
        return values
    grouped = values.view(*scale.shape, -1)
    grouped.sub_(zero.float()[..., None] if isinstance(zero, torch.Tensor) else float(zero))
    grouped.mul_(scale.float()[..., None])
    return values


def stored_scheme(weight: Weight) -> str | None:
    """How `weight` is stored, as text such as `w4g128z`, where it is made of integers; the scheme
    of the first one where there are several.
    """
    if not isinstance(weight, Expression):
        return None
    if weight.function is not from_codes:
        found = (stored_scheme(each) for each in _weights(weight.args))
        return next((each for each in found if each is not None), None)
    codes, scale, zero, *index = weight.args
    groups = scale.shape[1]
    group = f"g{codes.shape[1] // groups}" if groups > 1 else ""
    middle = 1 << (weight.kwargs["bits"] - 1) if codes.dtype == torch.uint8 else 0
    zeros = "" if _is_all(zero, middle) else "z"
    order = " in an order of its own" if index and index[0] is not None else ""
    return f"w{weight.kwargs['bits']}{group}{zeros}{order}"


def kept_parts(weight: Weight, scheme: Scheme) -> list[Weight] | None:
    """The parts of `scheme`, as of quantize_weight, that stand for `weight` exactly because it is
    stored like that; None where it is not, or where values were moved along the inputs.

    Scales and zero points are read, to see whether the scheme can express them.
    """
    if not isinstance(weight, Expression):
        return None
    if weight.function is from_codes:
        return _parts(*weight.args, bits=weight.kwargs["bits"], scheme=scheme)
    if not _moves_rows(weight):
        return None
    sources = _weights(weight.args)
    found = [kept_parts(source, scheme) for source in sources]
    parts: list[Weight] = []
    for number in range(scheme.parts):
        if any(each is None for each in found):
            return None
        given = {id(s): each[number] for s, each in zip(sources, found, strict=True) if each}
        args, kwargs = _replaced(weight.args, given), weight.kwargs
        if weight.function is aten.reshape.default:  # scales are fewer than inputs
            args = (args[0], [*args[1][:-1], args[0].shape[-1]])
        parts.append(Expression.of(weight.function, *args, output=weight.output, **kwargs))
    return parts


def _parts(
    codes: Weight,
    scale: Weight,
    zero: Weight | int,
    index: Weight | None = None,
    *,
    bits: int,
    scheme: Scheme,
) -> list[Weight] | None:
    inputs, groups = codes.shape[1], scale.shape[1]
    group = inputs // groups
    if bits > scheme.bits or (scheme.zero and bits != scheme.bits):
        return None
    if index is not None and not _in_order(index, group):
        return None
    if scheme.group is None and groups > 1:
        return None
    if scheme.group is not None and group % scheme.group:
        return None
    middle = 1 << (bits - 1) if codes.dtype == torch.uint8 else 0
    if not scheme.zero and not _is_all(zero, middle):
        return None
    dtype = torch.float32 if scheme.bits == 8 else torch.float16
    if not _exact(scale.load(), dtype):
        return None
    times = group // scheme.group if scheme.group else 1
    values = Expression.of(_signed, codes, 0 if scheme.zero else middle)
    if bits == 8 and int(values.load().min()) < scheme.range[0]:
        return None
    parts: list[Weight] = [values, Expression.of(_spread, scale, times, dtype)]
    if scheme.zero:
        zeros = zero if isinstance(zero, Weight) else Expression.of(_filled, scale, zero)
        parts.append(Expression.of(_spread, zeros, times, torch.uint8))
    return parts


def _signed(codes: torch.Tensor, middle: int) -> torch.Tensor:
    """int8 codes of which `middle` is subtracted."""
    return (codes.to(torch.int16) - middle).to(torch.int8)


def _spread(values: torch.Tensor, times: int, dtype: torch.dtype) -> torch.Tensor:
    """Each column `times` times: groups cut into smaller ones."""
    return values.to(dtype).repeat_interleave(times, dim=1)


def _filled(like: torch.Tensor, number: int) -> torch.Tensor:
    return torch.full(like.shape, number, dtype=torch.uint8, device=like.device)


def _exact(scale: torch.Tensor, dtype: torch.dtype) -> bool:
    """Is every scale a finite number of this type?"""
    cast = scale.to(dtype)
    return bool(cast.isfinite().all()) and torch.equal(cast.double(), scale.double())


def _is_all(zero: Weight | int, number: int) -> bool:
    return zero == number if isinstance(zero, int) else bool((zero.load() == number).all())


def _in_order(index: Weight, group: int) -> bool:
    """Are the groups those of neighbours, one behind the other?"""
    plain = torch.arange(index.shape[0]) // group
    return torch.equal(index.load().to(torch.int64), plain)


def _moves_rows(weight: Expression) -> bool:
    """Does the function only put whole rows, all inputs of an output, in other places?"""
    function, args = weight.function, weight.args
    last = len(weight.shape) - 1
    if function is aten._to_copy.default:
        return bool(weight.dtype == torch.float32 == args[0].dtype)
    if function is aten.clone.default:
        return True
    if function is aten.reshape.default:
        return bool(weight.shape[-1:] == args[0].shape[-1:])
    if function is aten.permute.default:
        return int(args[1][-1]) % (last + 1) == last
    if function is aten.transpose.int:
        return last not in (int(args[1]) % (last + 1), int(args[2]) % (last + 1))
    if function is aten.index.Tensor:
        return len(args[1]) <= last or args[1][last] is None
    at = _DIMENSIONS.get(function)
    if at is None:
        return False
    rank = last + 1 if function in _SAME_RANK else len(args[0].shape)
    dim = args[at] if len(args) > at else weight.kwargs.get("dim", 0)
    return int(dim) % rank != rank - 1


_SAME_RANK = (
    aten.cat.default,
    aten.stack.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unsqueeze.default,
)
_DIMENSIONS: dict[Any, int] = {
    **dict.fromkeys((aten.cat.default, aten.stack.default, aten.unsqueeze.default), 1),
    **dict.fromkeys((aten.select.int, aten.slice.Tensor, aten.index_select.default), 1),
    **dict.fromkeys((aten.split.Tensor, aten.split_with_sizes.default), 2),
}
"""Where the dimension along which a function works is among its arguments."""


def _weights(argument: Any) -> list[Weight]:
    if isinstance(argument, Weight):
        return [argument]
    if isinstance(argument, (list, tuple)):
        return [weight for each in argument for weight in _weights(each)]
    return []


def _replaced(argument: Any, values: dict[int, Weight]) -> Any:
    if isinstance(argument, Weight):
        return values[id(argument)]
    if isinstance(argument, (list, tuple)):
        return type(argument)(_replaced(each, values) for each in argument)
    return argument
