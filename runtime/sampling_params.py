"""What a user may ask of decoding, and how the model's own generation_config fills the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphwright.runtime.errors import RequestError
from graphwright.runtime.grammar import Grammar

__all__ = ["DEFAULT_MAX_TOKENS", "Sampling", "SamplingParams"]

DEFAULT_MAX_TOKENS = 256


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens. None: what the model's generation_config.json says, else no effect.

    temperature 0 is greedy. top_k 0, top_p 1, min_p 0 and repetition_penalty 1 do nothing. seed:
    the same seed and prompt give the same tokens, alone or in a batch. stop: texts that end the
    output and are not part of it. max_tokens: generated tokens, at most what the context holds.
    logprobs: 0 or more gives the log probability of each generated token and of so many that are
    most likely, by the model's logits as they are (runtime/log_probabilities.py). logit_bias: what
    is added to logits, by token id, from -100 to 100. presence_penalty, frequency_penalty: what is
    taken off a generated token's logit, once and for each time, from -2 to 2. grammar: what the
    text must be; it ends when it is complete. min_tokens: before so many were generated no end of
    text comes, and no stop text counts; not with a grammar. stop_token_ids: token ids that end the
    output as an end of text does, also with ignore_eos. prompt_logprobs: as logprobs, for the
    tokens of the prompt; max_tokens may be 0 then.
    Raises RequestError for values out of range.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | tuple[str, ...] | list[str] = ()
    max_tokens: int | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    grammar: Grammar | None = None
    min_tokens: int | None = None
    stop_token_ids: tuple[int, ...] | list[int] = ()
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        _require("temperature", self.temperature, lambda x: 0 <= x < float("inf"), "0 or more")
        _require("top_k", self.top_k, lambda x: x >= 0 and x == int(x), "a whole number, 0 for all")
        _require("top_p", self.top_p, lambda x: 0 < x <= 1, "above 0 and at most 1")
        _require("min_p", self.min_p, lambda x: 0 <= x <= 1, "from 0 to 1")
        _require("repetition_penalty", self.repetition_penalty, lambda x: 0 < x < float("inf"),
                 "above 0")  # fmt: skip
        _require("seed", self.seed, lambda x: x >= 0 and x == int(x), "a whole number, 0 or more")
        for name in ("logprobs", "prompt_logprobs", "min_tokens"):
            _require(name, getattr(self, name), lambda x: x >= 0 and x == int(x),
                     "a whole number, 0 or more")  # fmt: skip
        least = 1 if self.prompt_logprobs is None else 0
        _require("max_tokens", self.max_tokens, lambda x: x >= least and x == int(x),
                 f"{least} or more")  # fmt: skip
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        for token in self.stop_token_ids:
            _require("a token id of stop_token_ids", token,
                     lambda x: isinstance(x, int) and x >= 0, "a whole number")  # fmt: skip
        for name in ("presence_penalty", "frequency_penalty"):
            _require(name, getattr(self, name), lambda x: -2 <= x <= 2, "from -2 to 2")
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise RequestError(f"grammar must be a Grammar, not {self.grammar!r}.")
        if self.grammar is not None and self.min_tokens:
            raise RequestError("min_tokens cannot be kept where a grammar says when the text ends.")
        if "" in stop:
            raise RequestError("a stop text must not be empty.")

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """`logit_bias` as pairs of a token id and its bias, by id."""
        assert isinstance(self.logit_bias, tuple)
        return self.logit_bias

    def resolve(self, defaults: Mapping[str, Any]) -> Sampling:
        """All values, those not given from `defaults`, the content of a generation_config.json.

        Raises RequestError for a default that is no number.
        """

        def value(name: str, neutral: float, key: str | None = None) -> Any:
            asked = getattr(self, name)
            if asked is not None:
                return asked
            found = defaults.get(key or name)
            if found is not None and not isinstance(found, (int, float)):
                raise RequestError(
                    f"the model's generation_config.json has {found!r} for {key or name}, which is "
                    f"no number: say {name} yourself."
                )
            return neutral if found is None else found

        # Naming top_k, top_p or min_p asks for sampling, also of a model whose default is greedy.
        named = any(each is not None for each in (self.top_k, self.top_p, self.min_p))
        samples = self.temperature is not None or named or bool(defaults.get("do_sample"))
        assert isinstance(self.stop, tuple)
        return Sampling(
            float(value("temperature", 1.0)) if samples else 0.0,
            int(value("top_k", 0)),
            float(value("top_p", 1.0)),
            float(value("min_p", 0.0)),
            float(value("repetition_penalty", 1.0)),
            self.seed,
            self.stop,
            int(value("max_tokens", DEFAULT_MAX_TOKENS, "max_new_tokens")),
            self.ignore_eos,
            self.logprobs,
            self.biases,
            float(value("presence_penalty", 0.0)),
            float(value("frequency_penalty", 0.0)),
            self.grammar,
            int(value("min_tokens", 0, "min_new_tokens")) if self.grammar is None else 0,
            tuple(self.stop_token_ids),
            self.prompt_logprobs,
        )


@dataclass(frozen=True)
class Sampling:
    """SamplingParams with every value decided."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: tuple[str, ...]
    max_tokens: int
    ignore_eos: bool
    logprobs: int | None
    logit_bias: tuple[tuple[int, float], ...]
    presence_penalty: float
    frequency_penalty: float
    grammar: Grammar | None
    min_tokens: int
    stop_token_ids: tuple[int, ...]
    prompt_logprobs: int | None

    def ends(self, eos_ids: frozenset[int]) -> frozenset[int]:
        """The token ids that end the output, of a model with these end-of-text tokens."""
        return (frozenset() if self.ignore_eos else eos_ids) | frozenset(self.stop_token_ids)


def _biases(given: Any) -> tuple[tuple[int, float], ...]:
    """Pairs of a token id and its bias, by id. Raises RequestError."""
    try:
        pairs = sorted(dict(given).items())
    except (TypeError, ValueError):
        raise RequestError(
            f"logit_bias must be numbers by token id, such as {{50: -100}}, not {given!r}."
        ) from None
    for token, bias in pairs:
        _require("a token id of logit_bias", token, lambda x: isinstance(x, int), "a whole number")
        _require(f"logit_bias of the token {token}", bias, lambda x: -100 <= x <= 100,
                 "from -100 to 100")  # fmt: skip
    return tuple((token, float(bias)) for token, bias in pairs)


def _require(name: str, value: Any, good: Any, meaning: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not good(value):
        raise RequestError(f"{name} must be {meaning}, not {value!r}.")
