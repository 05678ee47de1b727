"""Which methods of quantizing are read, and the float weights of a checkpoint made by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from graphwright.frontend.checkpoint_files import CheckpointFiles
from graphwright.frontend.quantized.compressed import check_compressed, compressed_weight
from graphwright.frontend.quantized.float8 import FLOAT8, check_float8, float8_weight
from graphwright.frontend.quantized.gptq import awq_weight, check_awq, check_gptq, gptq_weight
from graphwright.frontend.quantized.tensors import Fields
from graphwright.ir.errors import FrontendError
from graphwright.ir.weights import Weight

__all__ = ["Quantized", "quantized_by"]


@dataclass(frozen=True)
class _Method:
    """check: refuses settings that are not read. weight: of the fields of one module, None where
    it is a float weight after all. marks: the fields that only quantized modules have."""

    check: Callable[[dict[str, Any]], None]
    weight: Callable[[Fields, dict[str, Any]], Weight | None]
    marks: tuple[str, ...]


_METHODS = {
    "gptq": _Method(check_gptq, gptq_weight, ("qweight",)),
    "awq": _Method(check_awq, awq_weight, ("qweight",)),
    "compressed-tensors": _Method(
        check_compressed, compressed_weight, ("weight_packed", "weight_scale")
    ),
    "fp8": _Method(check_float8, float8_weight, ("weight_scale_inv", "weight_scale")),
    "fbgemm_fp8": _Method(check_float8, float8_weight, ("weight_scale",)),
}
_READ = (
    "GPTQ, AWQ, compressed-tensors (pack-quantized, int-quantized, naive-quantized, "
    "float-quantized) and FP8"
)


@dataclass(frozen=True)
class Quantized:
    """How the checkpoint in `directory` is quantized, by its config.json."""

    directory: Path
    method: str
    settings: dict[str, Any]

    def weights(self, files: CheckpointFiles) -> dict[str, Weight]:
        """Every tensor of the checkpoint as of one that is not quantized, by its key: float
        weights [out, in] in place of what they are stored as. Nothing but indices is read.

        Raises FrontendError for tensors that are missing or do not fit.
        """
        method = _METHODS[self.method]
        made: dict[str, Weight] = {}
        used: set[str] = set()
        for module in _modules(files, method.marks):
            fields = Fields(files, module)
            weight = method.weight(fields, self.settings)
            if weight is not None:
                made[f"{module}.weight"] = weight
                used.update(fields.used)
        if not made:
            raise FrontendError(
                f"config.json of '{self.directory}' says that it is quantized (method "
                f"'{self.method}'), but its files hold no tensor called "
                f"{' or '.join(f'*.{mark}' for mark in method.marks)}."
            )
        for key in files:
            if key not in used and key not in made:
                made[key] = files.reference(key)
                self._check_plain(key, made[key].dtype)
        return made

    def _check_plain(self, key: str, dtype: torch.dtype) -> None:
        """Raises FrontendError when a tensor that nothing was made of is no float weight."""
        integers = not dtype.is_floating_point and key.endswith((".weight", ".weight_packed"))
        if integers or dtype in FLOAT8:
            raise FrontendError(
                f"'{key}' in '{self.directory}' is {str(dtype).removeprefix('torch.')}, and of "
                f"the tensors beside it none says what its values stand for."
            )


def quantized_by(directory: Path, config: dict[str, Any]) -> Quantized | None:
    """What `config`, the checkpoint's config.json, says of quantization; None when nothing.

    Raises FrontendError, one sentence, for a method or a form of one that is not read.
    """
    text = config.get("text_config")
    nested = text.get("quantization_config") if isinstance(text, dict) else None
    settings = config.get("quantization_config") or nested or config.get("compression_config")
    if not settings:
        return None
    method = settings.get("quant_method", "?") if isinstance(settings, dict) else "?"
    if method not in _METHODS:
        raise FrontendError(
            f"'{directory}' is quantized already, by method '{method}', which is not read; "
            f"{_READ} are. Give the original checkpoint and let graphwright quantize it."
        )
    try:
        _METHODS[method].check(settings)
    except FrontendError as error:
        raise FrontendError(f"'{directory}' cannot be read: {error}") from error
    return Quantized(directory, method, settings)


def _modules(files: CheckpointFiles, marks: tuple[str, ...]) -> Iterator[str]:
    """The modules that have a field of `marks`, each once, in the order of the files."""
    found = (key.rpartition(".") for key in files)
    yield from dict.fromkeys(module for module, _, name in found if name in marks)
