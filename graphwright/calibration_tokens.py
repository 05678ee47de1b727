"""Where calibration gets its tokens: a text file for the checkpoint's tokenizer, token ids, or the
model itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

from graphwright.gguf_input import gguf_file
from graphwright.ir.errors import FrontendError, PassError

if TYPE_CHECKING:
    import torch

    from graphwright.compile_options import CompileOptions
    from graphwright.ir.program import ModelInfo
    from graphwright.passes.auto_recipe import AutoRecipe
    from graphwright.passes.calibration import Calibration
    from graphwright.passes.recipe import Recipe
    from graphwright.passes.self_written_tokens import SelfWritten
    from graphwright.runtime.tokenizer import Tokenizer

__all__ = ["CALIBRATION_TOKENS", "SELF", "Calibrating", "CalibrationSource", "open_calibration",
           "open_tokens"]  # fmt: skip

CALIBRATION_TOKENS = 16384  # of a text, at most
SELF = "self"  # in place of a text: the model writes it
_LENGTH = 512  # of a sequence of a text, at most
_SELF_LENGTH = 256  # of a sequence that the model writes, at most
_TEXT_BYTES = 8 << 20  # of a file that is tokenized: its beginning

CalibrationSource: TypeAlias = Union[str, Path, "torch.Tensor", Sequence[Sequence[int]]]
Calibrating: TypeAlias = Callable[["ModelInfo", Mapping[str, bytes]], "Calibration | SelfWritten"]


def open_tokens(
    source: CalibrationSource | None, tokens: int, model: object, options: CompileOptions
) -> Calibrating | None:
    """As open_calibration, for what `options` need: the recipe `auto` chooses by tokens, also where
    no source is given, and takes some more, to test the choice by.

    Raises FrontendError or PassError, also where budget and recipe do not go together.
    """
    from graphwright.passes.auto_recipe import AutoRecipe, Budget, is_auto
    from graphwright.passes.dealt_tokens import CHOICE_TOKENS, HELD_OUT_TOKENS
    from graphwright.passes.recipe import Recipe

    Budget(options.max_kl, options.bits, options.max_size).check(options.quant)
    if not is_auto(options.quant):
        recipe = Recipe.parse(options.quant)
        return None if source is None else open_calibration(source, model, recipe, tokens)
    auto = AutoRecipe.parse(options.quant)
    if source is None:
        return lambda info, files: _self_written(files, info, CHOICE_TOKENS + HELD_OUT_TOKENS)
    return open_calibration(source, model, auto, tokens + HELD_OUT_TOKENS)


def open_calibration(
    source: CalibrationSource,
    model: object,
    recipe: Recipe | AutoRecipe,
    tokens: int = CALIBRATION_TOKENS,
) -> Calibrating:
    """What makes the tokens once `model` is captured, of what is known of it and of its files.

    source: a UTF-8 text file, of which sequences of 512 tokens, or of the context, are taken that
    come to at most `tokens`, evenly spread over it; token ids, [sequences, length] or several
    lists, all of which are taken; or "self", for the model to write at most `tokens`. Raises
    FrontendError or PassError, where what is wrong can be seen already.
    """
    if recipe.bits > 8:
        raise PassError(
            f"calibration rounds integer weights, and the recipe '{recipe}' has none: choose one "
            "such as w4g32."
        )
    if isinstance(source, str) and source == SELF:
        return lambda info, files: _self_written(files, info, tokens)
    if not isinstance(source, (str, Path)):
        return lambda info, files: _given(source, info)
    if not isinstance(model, (str, Path)):
        raise FrontendError(
            f"a module has no tokenizer for the text of {source}: give token ids to calibrate with."
        )
    folder = Path(model).parent if Path(model).suffix == ".onnx" else Path(model)
    inside = gguf_file(folder) is not None
    if not inside and not (folder / "tokenizer.json").is_file():
        raise _no_tokenizer(folder, source)
    text = _read_text(Path(source))

    def tokenized(info: ModelInfo, files: Mapping[str, bytes]) -> Calibration:
        if "tokenizer.json" not in files:
            raise _no_tokenizer(folder, source)
        return _tokenized(text, files, info, tokens)

    return tokenized


def _no_tokenizer(model: Path, source: str | Path) -> FrontendError:
    return FrontendError(
        f"{model} has no tokenizer.json to read {source} with: give token ids to calibrate "
        "with, in Python."
    )


def _read_text(path: Path) -> str:
    """The beginning of a UTF-8 file, 8 MB of it at most. Raises FrontendError."""
    try:
        with path.open("rb") as file:
            data = file.read(_TEXT_BYTES + 1)
    except OSError as error:
        raise FrontendError(f"{path} cannot be read: {error.strerror}.") from error
    whole = len(data) <= _TEXT_BYTES
    try:
        text = data[:_TEXT_BYTES].decode()
    except UnicodeDecodeError as error:
        if whole or error.end < _TEXT_BYTES:  # where it was cut a character may have been, too
            raise FrontendError(
                f"{path} is not UTF-8 text: byte {error.start} is wrong."
            ) from error
        text = data[: error.start].decode()
    if not text.strip():
        raise FrontendError(f"{path} has no text to calibrate with.")
    return text


def _tokenized(text: str, files: Mapping[str, bytes], info: ModelInfo, tokens: int) -> Calibration:
    """Sequences of a text, evenly spread over it, begun with the BOS if the tokenizer adds one."""
    import torch

    from graphwright.passes.calibration import Calibration

    tokenizer = _tokenizer(files)
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = tokenizer.encode(text, special=False)
    length = min(_LENGTH, info.max_context or _LENGTH, tokens)
    width = length - len(begin)
    if not ids or width < 1:
        raise FrontendError(
            f"the text for calibration has {len(ids)} tokens; sequences of {length}, begun with "
            f"{len(begin)} that every text begins with, hold none of them."
        )
    windows = [ids[start : start + width] for start in range(0, len(ids), width)]
    count = min(tokens // length, len(windows))
    windows = [windows[i * len(windows) // count] for i in range(count)]
    return Calibration(tuple(torch.tensor(begin + each) for each in windows))


def _self_written(files: Mapping[str, bytes], info: ModelInfo, tokens: int) -> SelfWritten:
    """Sequences that begin with the BOS if the tokenizer adds one, otherwise with any token."""
    from graphwright.passes.self_written_tokens import SelfWritten

    length = min(_SELF_LENGTH, info.max_context or _SELF_LENGTH, tokens)
    bos = _tokenizer(files).bos_id if "tokenizer.json" in files else None
    return SelfWritten(tokens // length, length, bos)


def _tokenizer(files: Mapping[str, bytes]) -> Tokenizer:
    from graphwright.runtime.tokenizer import Tokenizer

    config = json.loads(files.get("tokenizer_config.json", b"{}"))
    return Tokenizer(files["tokenizer.json"], config)


def _given(sequences: torch.Tensor | Sequence[Sequence[int]], info: ModelInfo) -> Calibration:
    import torch

    from graphwright.passes.calibration import Calibration

    rows = [torch.as_tensor(each) for each in sequences]
    if not rows or any(each.dim() != 1 or not len(each) for each in rows):
        raise FrontendError(
            "calibration takes sequences of token ids, [sequences, length] or a list of lists, "
            "none of them empty."
        )
    for number, row in enumerate(rows):
        if row.is_floating_point() or row.dtype == torch.bool:
            raise FrontendError(f"calibration takes token ids, not {row.dtype}.")
        low, high = int(row.min()), int(row.max())
        if low < 0 or high >= info.vocab_size:
            raise FrontendError(
                f"sequence {number} for calibration has the token id {low if low < 0 else high}; "
                f"the model has 0 to {info.vocab_size - 1}."
            )
        if info.max_context is not None and len(row) > info.max_context:
            raise FrontendError(
                f"sequence {number} for calibration has {len(row)} tokens; the context holds "
                f"{info.max_context}."
            )
    return Calibration(tuple(each.long() for each in rows))
