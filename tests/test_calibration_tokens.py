"""Tokens to calibrate with: what is taken of a text, and what is refused with which sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_model import word_tokenizer

from graphwright.__main__ import main
from graphwright.calibration_tokens import CALIBRATION_TOKENS, open_calibration
from graphwright.ir.errors import FrontendError, PassError
from graphwright.ir.program import ModelInfo
from graphwright.passes.calibration import Calibration
from graphwright.passes.recipe import Recipe
from graphwright.passes.self_written_tokens import SelfWritten

W4 = Recipe.parse("w4g32")
INFO = ModelInfo("small", 97, 64)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A directory with a tokenizer: a token for each character, and a BOS."""
    (tmp_path / "tokenizer.json").write_text(word_tokenizer())
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    return tmp_path


def sequences(
    checkpoint: Path, text: str, info: ModelInfo = INFO, tokens: int = 2048
) -> list[list[int]]:
    file = checkpoint / "text.txt"
    file.write_text(text)
    files = {each.name: each.read_bytes() for each in checkpoint.iterdir()}
    found = open_calibration(file, checkpoint, W4, tokens)(info, files)
    assert isinstance(found, Calibration)
    assert found.tokens == sum(len(each) for each in found.sequences)
    return [each.tolist() for each in found.sequences]


def test_a_text_becomes_windows_that_begin_with_the_bos(checkpoint: Path) -> None:
    found = sequences(checkpoint, "ab" * 100)
    assert [len(each) for each in found] == [64, 64, 64, 12]
    assert all(each[0] == 0 for each in found)
    assert len({tuple(each[1:63]) for each in found[:2]}) == 2, "a window holds 63 characters"


def test_a_long_text_gives_a_bounded_number_from_all_over_it(checkpoint: Path) -> None:
    text = "".join(chr(97 + i // 400) for i in range(26 * 400))
    found = sequences(checkpoint, text)
    assert len(found) == 32
    assert len({each[-1] for each in found}) > 20
    long = sequences(checkpoint, text, ModelInfo("small", 97, None))
    assert [len(each) for each in long] == [512] * 4
    assert [len(each) for each in sequences(checkpoint, text, tokens=10)] == [10]
    with pytest.raises(FrontendError, match="sequences of 1, begun with 1 that every text"):
        sequences(checkpoint, text, ModelInfo("small", 97, 1))


def test_a_character_may_end_behind_the_end_of_what_is_read(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphwright.calibration_tokens._TEXT_BYTES", 4)
    assert len(sequences(checkpoint, "abcé and more")[0]) == 4
    file = checkpoint / "text.txt"
    file.write_bytes(b"a\xffcd and more")
    with pytest.raises(FrontendError, match="is not UTF-8 text: byte 1 is wrong"):
        open_calibration(file, checkpoint, W4)


def test_token_ids_are_taken_as_they_are() -> None:
    for given in (torch.tensor([[1, 2, 3], [4, 5, 6]]), [[1, 2, 3], [4, 5, 6]]):
        found = open_calibration(given, None, W4)(INFO, {})
        assert isinstance(found, Calibration)
        assert [each.tolist() for each in found.sequences] == [[1, 2, 3], [4, 5, 6]]
        assert str(found) == "6 tokens in 2 sequences"
    other = open_calibration([[1, 2], [3, 4, 5, 6]], None, W4)(INFO, {})
    assert isinstance(other, Calibration) and isinstance(found, Calibration)
    assert other.digest != found.digest


def test_the_model_writes_as_many_tokens_as_are_wanted(checkpoint: Path) -> None:
    files = {each.name: each.read_bytes() for each in checkpoint.iterdir()}
    whole = open_calibration("self", checkpoint, W4)(INFO, files)
    assert whole == SelfWritten(CALIBRATION_TOKENS // 64, 64, begin=0)
    long = open_calibration("self", None, W4, 600)(ModelInfo("small", 97, None), {})
    assert long == SelfWritten(2, 256, begin=None)
    few = open_calibration("self", None, W4, 10)(INFO, {})
    assert few == SelfWritten(1, 10)
    assert few.record == (
        "10 tokens in 1 sequences written by the model at temperature 1.3 with seed 0"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "none of them empty"),
        ([[1], []], "none of them empty"),
        ([[1, 97]], "sequence 0 for calibration has the token id 97; the model has 0 to 96"),
        ([[1], [-1]], "sequence 1 for calibration has the token id -1"),
        ([[0] * 65], "has 65 tokens; the context holds 64"),
        (torch.zeros(2, 3), "takes token ids, not torch.float32"),
    ],
)
def test_wrong_token_ids(given: Any, message: str) -> None:
    with pytest.raises(FrontendError, match=message):
        open_calibration(given, None, W4)(INFO, {})


def test_what_can_be_seen_before_capture(checkpoint: Path) -> None:
    file = checkpoint / "text.txt"
    for content, message in (
        (b"caf\xe9 au lait", "is not UTF-8 text: byte 3 is wrong"),
        (b"", "has no text to calibrate with"),
        (b" \n", "has no text to calibrate with"),
    ):
        file.write_bytes(content)
        with pytest.raises(FrontendError, match=message):
            open_calibration(file, checkpoint, W4)
    with pytest.raises(FrontendError, match="cannot be read: No such file"):
        open_calibration(checkpoint / "away.txt", checkpoint, W4)
    with pytest.raises(FrontendError, match="a module has no tokenizer"):
        open_calibration(file, torch.nn.Linear(2, 2), W4)
    for quant in ("f32", "bf16"):
        with pytest.raises(PassError, match=f"the recipe '{quant}' has none"):
            open_calibration([[1]], None, Recipe.parse(quant))


def test_the_command_line_refuses_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("Once upon a time")
    for arguments, message in (
        (["--calibrate", "away.txt"], "there is no file 'away.txt' to calibrate with"),
        (["--calibrate", str(tmp_path / "text.txt")], "the recipe 'f32' has none"),
        (["--quant", "w8", "--calibrate", str(tmp_path / "text.txt")], "has no tokenizer.json"),
    ):
        assert main(["compile", str(tmp_path), "-o", str(tmp_path / "x.gw"), *arguments]) == 1
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    assert main(["compile", str(tmp_path), "--calibration-tokens", "9"]) == 2
    assert "goes with --calibrate" in capsys.readouterr().err
    assert main(["compile", "--help"]) == 0
    assert f"(default: {CALIBRATION_TOKENS})" in " ".join(capsys.readouterr().out.split())
