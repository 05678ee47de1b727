"""Tokenizer, chat template and defaults of generation of a GGUF file, as the files of a checkpoint.

transformers makes the tokenizer. Where it passes over something that the header says of how texts
are cut, there is none: ids that another tokenizer would give are worse.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from graphwright.frontend.gguf_files.reading import GgufFile
from graphwright.frontend.transformers_loading import silent

__all__ = ["vocabulary_files"]

_KEY = "tokenizer.ggml."
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
_SPACE = "\u2581"  # as vocabularies of pieces write it
_OWN_SPLIT = "gpt-2"  # what a byte-level tokenizer without a split of another kind does


def vocabulary_files(file: GgufFile) -> tuple[dict[str, bytes], str | None]:
    """tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json, as
    far as `file` says what is in them, and why there is no tokenizer, if there is none.
    """
    defaults = json.dumps(_generation(file.metadata), indent=1).encode()
    files = {"generation_config.json": defaults}
    if not file.metadata.get(f"{_KEY}tokens"):
        return files, "the file has no vocabulary"
    try:
        with silent():
            made = _tokenizer_files(file)
    except Exception as error:  # noqa: BLE001  (whatever a vocabulary leads to; told below)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        return files, f"transformers makes no tokenizer of the vocabulary: {reason}"
    tokenizer = json.loads(made["tokenizer.json"])
    split = file.metadata.get(f"{_KEY}pre")
    if _cuts_as_ever(tokenizer) and split not in (None, _OWN_SPLIT):
        return files, f"texts are to be cut as '{split}' does, which transformers does not know"
    _settle(tokenizer, file.metadata)
    return {**files, **made, "tokenizer.json": json.dumps(tokenizer).encode()}, None


def _tokenizer_files(file: GgufFile) -> dict[str, bytes]:
    from transformers import TokenizersBackend
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    architecture, vocabulary, settings = get_gguf_tokenizer(str(file.path))
    backend, more = convert_gguf_tokenizer(architecture, vocabulary)
    tokenizer = TokenizersBackend(tokenizer_object=backend, **settings, **more)
    with tempfile.TemporaryDirectory(prefix="graphwright-") as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def _cuts_as_ever(tokenizer: dict[str, Any]) -> bool:
    """Is the text cut by the pattern that byte-level tokenizers have by default?"""
    cutter = tokenizer["pre_tokenizer"] or {}
    return cutter.get("type") == "ByteLevel" and bool(cutter.get("use_regex"))


def _settle(tokenizer: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Tokens that its class brings beside those of the file have no embedding, and a space comes
    before each text, also before one that begins with a space, or before none.
    """
    count = metadata[f"{_KEY}tokens"]
    tokenizer["added_tokens"] = [each for each in tokenizer["added_tokens"] if each["id"] < count]
    if (tokenizer["pre_tokenizer"] or {}).get("type") != "Metaspace":
        return
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    ]
    if metadata.get(f"{_KEY}add_space_prefix") is not False:
        steps.insert(0, {"type": "Prepend", "prepend": _SPACE})
    elif tokenizer["decoder"].get("type") == "Sequence":
        decoders = tokenizer["decoder"]["decoders"]
        tokenizer["decoder"]["decoders"] = [each for each in decoders if each["type"] != "Strip"]
    tokenizer["pre_tokenizer"] = None
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": steps}


def _generation(metadata: dict[str, Any]) -> dict[str, Any]:
    """The content of generation_config.json."""
    found: dict[str, Any] = {}
    if f"{_KEY}bos_token_id" in metadata:
        found["bos_token_id"] = metadata[f"{_KEY}bos_token_id"]
    ends = [metadata[_KEY + name] for name in _ENDS if _KEY + name in metadata]
    if ends:
        found["eos_token_id"] = list(dict.fromkeys(ends))
    if f"{_KEY}padding_token_id" in metadata:
        found["pad_token_id"] = metadata[f"{_KEY}padding_token_id"]
    for key, name in _SAMPLING.items():
        value = metadata.get(f"general.sampling.{key}")
        if value is not None:
            found[name] = value
    if "temperature" in found:
        found["do_sample"] = found["temperature"] > 0
    return found
