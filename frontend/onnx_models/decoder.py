"""ONNX file → Program: the graph as a stateless decoder, traced like any other module.

Graphs that were exported with a cache take keys and values of the past and give those of the
present: here the past has no positions, and what is given of the present is dropped. What is left
is a forward over one sequence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from graphwright.frontend.capture import capture_with_weights
from graphwright.frontend.checkpoint_files import read_json
from graphwright.frontend.onnx_models.dtypes import torch_dtype
from graphwright.frontend.onnx_models.module import OnnxModule
from graphwright.frontend.onnx_models.reading import read_model
from graphwright.frontend.onnx_models.values import Value, known
from graphwright.ir.errors import FrontendError
from graphwright.ir.program import Program
from graphwright.ir.weights import ConstantTensor

__all__ = ["capture_onnx", "onnx_decoder"]

_TOKENS = ("input_ids", "tokens", "input")
_POSITIONS = ("position_ids", "positions", "input_pos")
_MASKS = ("attention_mask", "mask")
_SWITCHES = ("use_cache_branch",)  # merged decoders: without a past


def capture_onnx(
    path: str | Path, *, max_context: int | None = None, has_values: bool = True
) -> Program:
    """Traces the decoder in an ONNX file, whose weights may lie in files beside it.

    max_context: as for `capture_module`; by default what a config.json beside the file says.
    has_values: as for `capture_with_weights`.
    Raises FrontendError for what is not supported, and for graphs that are no decoders.
    """
    path = Path(path)
    model = onnx_decoder(path)
    with torch.no_grad():
        return capture_with_weights(
            model,
            lambda origin, tensor: ConstantTensor.of(tensor.detach(), origin.replace("/", ".")),
            name=path.stem,
            max_context=max_context,
            has_values=has_values,
        )


def onnx_decoder(path: Path) -> nn.Module:
    """A module whose forward takes input_ids [1, T] (and position_ids, if the graph does) and
    returns logits [1, T, vocabulary]. Raises FrontendError.
    """
    model = read_model(path)
    stored = {each.name for each in model.graph.initializer}
    inputs = {each.name: each for each in model.graph.input if each.name not in stored}
    tokens = next((name for name in _TOKENS if name in inputs), None)
    if tokens is None:
        raise FrontendError(
            f"'{path}' takes {', '.join(sorted(inputs)) or 'nothing'}; a decoder takes input_ids."
        )
    positions = next((name for name in _POSITIONS if name in inputs), None)
    others = [each for name, each in inputs.items() if name not in (tokens, positions)]
    given = _Inputs(path, tokens, positions, others)
    kind = _WithoutPositions if positions is None else _WithPositions
    return kind(model, path.parent, given, _logits_of(path, model))


def _logits_of(path: Path, model: onnx.ModelProto) -> str:
    names = [str(each.name) for each in model.graph.output]
    if "logits" in names:
        return "logits"
    ranks = [str(each.name) for each in model.graph.output if len(_dims(each)) == 3]
    if len(ranks) != 1:
        raise FrontendError(f"'{path}' gives {', '.join(names)}; a decoder gives logits.")
    return ranks[0]


def _dims(value: onnx.ValueInfoProto) -> list[int | None]:
    """None where a length is not fixed."""
    shape = value.type.tensor_type.shape.dim
    return [each.dim_value if each.HasField("dim_value") else None for each in shape]


def _past_shape(value: onnx.ValueInfoProto) -> list[int] | None:
    """Of a sequence without a past: no keys or values, and states, which begin with zeros, whole.

    Lengths that are not fixed are told by their names, or by where they stand among four: [batch,
    heads, length, channels]. Of no positions nobody reads the channels: any number will do.
    """
    sizes: list[int] = []
    dims = value.type.tensor_type.shape.dim
    for place, each in enumerate(dims):
        name = each.dim_param
        if each.HasField("dim_value"):
            sizes.append(int(each.dim_value))
        elif "past" in name or (len(dims) == 4 and place == 2):
            sizes.append(0)
        elif "batch" in name or place == 0 or (len(dims) == 4 and place == 3):
            sizes.append(1)
        else:
            return None
    return sizes


class _Inputs:
    """What the graph is given beside tokens and positions."""

    def __init__(
        self, path: Path, tokens: str, positions: str | None, others: list[onnx.ValueInfoProto]
    ) -> None:
        self.tokens, self.positions = tokens, positions
        self.masks = [each.name for each in others if each.name in _MASKS]
        self.types = {each.name: each.type.tensor_type.elem_type for each in others}
        self.past: dict[str, list[int]] = {}
        self.switches = [each.name for each in others if each.name in _SWITCHES]
        for each in others:
            if each.name in (*self.masks, *self.switches):
                continue
            shape = _past_shape(each) if each.name.startswith("past") else None
            if shape is None:
                raise FrontendError(
                    f"'{path}' takes '{each.name}' {_dims(each)}, which is neither tokens, "
                    "positions, a mask of padding nor keys, values or states of the past."
                )
            self.past[each.name] = shape

    def values(self, length: Any) -> dict[str, Value]:
        """For one sequence of `length` tokens, none of them padding, without a past."""
        found: dict[str, Value] = {}
        for name in self.masks:
            kind = torch_dtype(self.types[name], False)
            found[name] = torch.ones((1, length), dtype=kind)
        for name, shape in self.past.items():
            found[name] = torch.zeros(shape, dtype=torch_dtype(self.types[name], False))
        for name in self.switches:
            found[name] = known(0).astype(bool).reshape(1)
        return found


class _Decoder(OnnxModule):
    def __init__(self, model: onnx.ModelProto, folder: Path, given: _Inputs, logits: str) -> None:
        super().__init__(model, folder)
        self._given, self._logits, self.config = given, logits, _config(folder)

    def _logits_for(self, tokens: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        values = self._given.values(tokens.shape[1])
        values[self._given.tokens] = tokens
        if self._given.positions is not None and positions is not None:
            values[self._given.positions] = positions
        found = self.compute(values)[self._logits]
        assert isinstance(found, torch.Tensor)
        return found


class _WithPositions(_Decoder):
    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return self._logits_for(input_ids, position_ids)


class _WithoutPositions(_Decoder):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self._logits_for(input_ids, None)


class _Config:
    """The numbers of a config.json as attributes, for context_of."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update({key: n for key, n in values.items() if isinstance(n, int)})


def _config(folder: Path) -> _Config:
    """Of the folder of the file. Raises FrontendError where it is damaged."""
    path = folder / "config.json"
    return _Config(read_json(path) if path.is_file() else {})
