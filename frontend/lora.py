"""LoRA adapters as PEFT saves them, merged into the weights that they were trained for, or read as
they are (frontend/beside_weights.py).

W becomes W + scale · B·A (Hu et al., arXiv 2106.09685), or with DoRA (Liu et al., arXiv 2402.09353)
m · (W + scale · B·A) / ‖W + scale · B·A‖, row by row. Nothing is loaded here: each weight is an
expression that is evaluated when it is packed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphwright.frontend.capture import Source
from graphwright.frontend.checkpoint_files import checkpoint_name, read_json, stored_tensors
from graphwright.frontend.recorded_tensors import RecordedTensor
from graphwright.ir.adapters import LowRank
from graphwright.ir.errors import FrontendError
from graphwright.ir.weights import Expression, Weight

__all__ = ["LoraAdapter", "adapter_hash", "record_of"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?:embedding_)?(?P<factor>[AB])(?:\.weight)?")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(?:\.weight)?")


@dataclass
class _Module:
    """What an adapter has for one module. embedding: are the factors those of a table?"""

    factors: dict[str, Weight] = field(default_factory=dict)
    magnitude: Weight | None = None
    embedding: bool = False


class LoraAdapter:
    """An adapter directory: what it changes of a model."""

    def __init__(self, directory: Path) -> None:
        """Reads headers only. Raises FrontendError for what is missing, damaged or not merged."""
        self.directory = directory
        config = _read_config(directory)
        self._alpha = float(config.get("lora_alpha", 8))
        self._alphas = dict(config.get("alpha_pattern") or {})
        self._root = bool(config.get("use_rslora"))
        self._turned = bool(config.get("fan_in_fan_out"))
        self._modules: dict[str, _Module] = {}
        self._whole: dict[str, Weight] = {}  # what was trained as it is, by its name
        self._read(directory / _WEIGHTS)

    def merge_into(self, model: nn.Module, source: Source) -> None:
        """Parameters of `model` that were trained become RecordedTensors of what is made of them,
        where `source` gives the weight of each as it is. Raises FrontendError, also if the model
        has no place for a part of the adapter.
        """
        found = dict(model.named_parameters(remove_duplicate=False))
        for name in self._weights_of(found):
            merged = self._merge(name, source(name, found[name]))
            owner, _, attribute = name.rpartition(".")
            parameter = nn.Parameter(RecordedTensor(merged), requires_grad=False)
            setattr(model.get_submodule(owner), attribute, parameter)

    def low_rank(self, model: nn.Module, source: Source | None) -> dict[str, tuple[LowRank, bool]]:
        """What it changes of the weights of `model`, by their names, and whether each is stored
        [in, out]. source: gives those as they are; None: what was saved whole is taken for them.
        Raises FrontendError, also for what is no low-rank change of a linear's weight.
        """
        found = dict(model.named_parameters(remove_duplicate=False))
        changes = {}
        for name in self._weights_of(found):
            own = source(name, found[name]) if source and name in self._whole else None
            if own is not None and not self._is_copy(name, own):
                raise self._only_merged(f"replaces '{name}' as a whole")
            module = self._modules.get(name.removesuffix(".weight"))
            if module is None or not name.endswith(".weight"):
                continue
            if module.magnitude is not None:
                raise self._only_merged("is one of DoRA, which scales the sum of both weights")
            if module.embedding:
                raise self._only_merged(f"changes the table '{name}'")
            self._check_fits(name, module, found[name].shape)
            a, b = module.factors["A"], module.factors["B"]
            scale = self._scale(name.removesuffix(".weight"), a.shape[0])
            changes[name] = LowRank(a, b, scale), self._turned
        return changes

    def _is_copy(self, name: str, weight: Weight) -> bool:
        """Is what was saved whole the model's own? PEFT saves tables and heads along with factors
        for them."""
        stored = self._replaced(name, weight)
        return torch.equal(stored.load(), weight.load())

    def _only_merged(self, what: str) -> FrontendError:
        return FrontendError(
            f"the adapter {self.directory} {what}: it cannot stay beside the weights to be chosen "
            "by requests; merge it with --lora, into a file of its own."
        )

    def _weights_of(self, found: Mapping[str, nn.Parameter]) -> list[str]:
        """The names of the weights that it changes, each one that a model has, and has once."""
        wanted = {*(f"{name}.weight" for name in self._modules), *self._whole}
        left = sorted(wanted - set(found))
        if left:
            raise FrontendError(
                f"the adapter {self.directory} has {len(left)} of its {len(wanted)} tensors for "
                f"weights that this model does not have, the first is '{left[0]}': it was trained "
                "for another one."
            )
        for name in wanted:
            self._check_alone(name, found)
        return sorted(wanted)

    def _check_alone(self, name: str, found: Mapping[str, nn.Parameter]) -> None:
        for other, parameter in found.items():
            if other != name and parameter is found[name]:
                raise FrontendError(
                    f"the adapter {self.directory} changes '{name}', which is also '{other}' in "
                    "this model: one of the two cannot change alone."
                )

    def _merge(self, name: str, weight: Weight) -> Weight:
        """What was saved whole comes first: PEFT does so with the tables under their factors."""
        if name in self._whole:
            weight = self._replaced(name, weight)
        module = name.removesuffix(".weight")
        if module not in self._modules:
            return weight
        return self._merged(module, self._modules[module], weight)

    def _read(self, path: Path) -> None:
        for each in stored_tensors(path):
            self._place(each.key, each.reference())
        for name, module in self._modules.items():
            if set(module.factors) != {"A", "B"}:
                raise FrontendError(
                    f"{path} has '{name}' with {' and '.join(sorted(module.factors)) or 'neither'} "
                    "of the two factors A and B."
                )

    def _place(self, key: str, weight: Weight) -> None:
        name = key.removeprefix(_PREFIX)
        factor, magnitude = _FACTOR.fullmatch(name), _MAGNITUDE.fullmatch(name)
        if factor is not None:
            module = self._modules.setdefault(factor["module"], _Module())
            module.factors[factor["factor"]] = weight
            module.embedding |= ".lora_embedding_" in name
        elif magnitude is not None:
            self._modules.setdefault(magnitude["module"], _Module()).magnitude = weight
        elif "lora_" in name:
            raise FrontendError(
                f"{self.directory} has '{key}', which is none of the tensors of LoRA and DoRA "
                "that can be merged."
            )
        else:
            self._whole[name.replace(".base_layer.", ".")] = weight

    def _scale(self, name: str, rank: int) -> float:
        alpha = next(
            (float(value) for pattern, value in self._alphas.items()
             if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name)),
            self._alpha,
        )  # fmt: skip
        return alpha / (rank**0.5 if self._root else rank)

    def _merged(self, name: str, module: _Module, weight: Weight) -> Weight:
        self._check_fits(name, module, weight.shape)
        a, b = module.factors["A"], module.factors["B"]
        turned = module.embedding or self._turned
        scale = self._scale(name, a.shape[0])
        return Expression.of(
            _merge, weight, a, b, module.magnitude, scale=scale, turned=turned,
            by_column=self._turned,
        )  # fmt: skip

    def _check_fits(self, name: str, module: _Module, weight: tuple[int, ...]) -> None:
        a, b = module.factors["A"].shape, module.factors["B"].shape
        turned = module.embedding or self._turned
        shape = (b[0], a[-1])
        fits = len(a) == len(b) == len(weight) == 2 and b[1] == a[0]
        if not fits or (shape[::-1] if turned else shape) != tuple(weight):
            raise FrontendError(
                f"the adapter {self.directory} changes '{name}' by {list(b)} times {list(a)}, and "
                f"the model has {list(weight)} there."
            )

    def _replaced(self, name: str, weight: Weight) -> Weight:
        stored = self._whole[name]
        if stored.shape != weight.shape:
            raise FrontendError(
                f"the adapter {self.directory} replaces '{name}' by {list(stored.shape)}, and the "
                f"model has {list(weight.shape)} there."
            )
        return Expression.of(torch.ops.aten._to_copy.default, stored, dtype=weight.dtype)


def record_of(adapters: Iterable[Path]) -> str:
    """What an artifact keeps of the adapters it was merged with: names and hashes. Raises
    FrontendError for a directory that is none."""
    return "; ".join(
        f"{checkpoint_name(directory)}, sha256 {adapter_hash(directory)}" for directory in adapters
    )


def adapter_hash(directory: Path) -> str:
    """The SHA-256 of an adapter's weights. Raises FrontendError for a directory that is none."""
    _read_config(directory)
    with (directory / _WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _merge(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, magnitude: torch.Tensor | None,
    *, scale: float, turned: bool, by_column: bool,
) -> torch.Tensor:  # fmt: skip
    """In float32, and then of the weight's type. turned: the weight is [in, out], as are tables."""
    change = (b.float() @ a.float()) * scale
    merged = weight.float() + (change.T if turned else change)
    if magnitude is not None:
        norms = torch.linalg.norm(merged, dim=0 if by_column else 1, keepdim=True)
        merged = merged * (magnitude.float().reshape(norms.shape) / norms)
    return merged.to(weight.dtype)


def _read_config(directory: Path) -> dict[str, Any]:
    for name in (_CONFIG, _WEIGHTS):
        if not (directory / name).is_file():
            raise FrontendError(
                f"'{directory}' has no {name}: expected a LoRA adapter as PEFT saves it."
            )
    config = read_json(directory / _CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise FrontendError(f"'{directory}' is an adapter of type {kind}; only LORA is merged.")
    if config.get("target_parameters"):
        raise FrontendError(
            f"'{directory}' changes single parameters ('target_parameters'), which is not merged; "
            "merge it with PEFT (merge_and_unload) and save the model."
        )
    return config
