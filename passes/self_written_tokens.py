"""Tokens to calibrate with that the model writes itself, so that no text is needed.

The program as it is before quantization samples each next token from its own distribution, all
sequences side by side over one paged cache. Such tokens round a model about as well as its
training text does (LLM-QAT, Liu et al. 2023, arXiv:2305.17888).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from graphwright.ir.errors import PassError
from graphwright.ir.interpreter import Interpreter, WeightCache
from graphwright.ir.paging import PagedCache
from graphwright.ir.program import Program
from graphwright.passes.calibration import Calibration, threads_for

__all__ = ["SelfWritten"]

_BLOCK = 16  # positions of a block of the caches


@dataclass(frozen=True)
class SelfWritten:
    """How many sequences of which length to write, and how.

    begin: the id that each begins with (None: one at random, another for each). A softer
    distribution (`temperature` above 1) meets more of what other texts have.
    """

    count: int
    length: int
    begin: int | None = None
    temperature: float = 1.3
    seed: int = 0

    @property
    def origin(self) -> str:
        """Who wrote them, and how."""
        return f"written by the model at temperature {self.temperature:g} with seed {self.seed}"

    @property
    def record(self) -> str:
        """What an artifact says of them."""
        return str(self)

    def __str__(self) -> str:
        return f"{self.count * self.length} tokens in {self.count} sequences {self.origin}"

    def write(self, program: Program) -> Calibration:
        """The sequences. Raises PassError when the logits of `program` are not finite."""
        largest = max(math.prod(program.weights[name].shape[-2:]) for name in program.weights)
        with threads_for(largest):
            return Calibration(tuple(self._ids(program)), self.origin)

    def _ids(self, program: Program) -> torch.Tensor:
        """All sequences, int64 [count, length]."""
        generator = torch.Generator().manual_seed(self.seed)
        vocabulary = program.info.vocab_size
        if self.begin is None:
            ids = torch.randint(0, vocabulary, (self.count, 1), generator=generator)
        else:
            ids = torch.full((self.count, 1), self.begin)
        blocks = self.count * -(-self.length // _BLOCK)
        cache = PagedCache(program, num_blocks=blocks, block_size=_BLOCK, slots=self.count)
        numbers = [cache.start() for _ in range(self.count)]
        interpreter, weights = Interpreter(program), WeightCache()
        while ids.shape[1] < self.length:
            inputs = cache.inputs([(n, row[-1:]) for n, row in zip(numbers, ids, strict=True)])
            logits = interpreter.run(inputs, weights).reshape(self.count, -1)[:, :vocabulary]
            ids = torch.cat([ids, self._sample(logits, generator)], dim=1)
        return ids

    def _sample(self, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A token for each sequence [count, 1] by its logits [count, vocabulary]."""
        shares = (logits.double() / self.temperature).softmax(-1)
        if not bool(shares.isfinite().all()):
            raise PassError(
                "the model's logits are not finite, so that it cannot write the tokens to "
                "calibrate with: give it a text."
            )
        return torch.multinomial(shares, 1, generator=generator)
