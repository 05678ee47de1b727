"""A made-up byte-level BPE tokenizer of the shape's vocabulary: converters ask for one.

make_tokenizer.py SHAPE DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

from shapes import SHAPES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

__all__ = ["make_tokenizer"]


def make_tokenizer(shape: str, directory: Path) -> None:
    """Writes tokenizer files into `directory`: bytes first, then pairs, as many as needed."""
    size = SHAPES[shape]["vocab_size"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: i for i, text in enumerate(["<unk>", "<s>", "</s>", *letters])}
    merges: list[tuple[str, str]] = []
    for left in letters:
        for right in letters:
            if len(vocabulary) < size:
                vocabulary[left + right] = len(vocabulary)
                merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    wrapped.save_pretrained(directory)


if __name__ == "__main__":
    make_tokenizer(sys.argv[1], Path(sys.argv[2]))
