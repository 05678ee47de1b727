"""How tokens are to be chosen, out of a request's body."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from graphwright.runtime.errors import RequestError
from graphwright.runtime.sampling_params import SamplingParams
from graphwright.runtime.server.body import Body
from graphwright.runtime.server.errors import ApiError

__all__ = ["choice_params", "take_sampling"]

_NUMBERS = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
    "min_tokens": int,
}


def take_sampling(
    body: Body, default_max_tokens: int | None, logprobs: int | None, scores_prompt: bool = False
) -> SamplingParams:
    """SamplingParams of a body; what it does not name is left to the model's generation_config.

    default_max_tokens: when the body names none. logprobs: how many the body asks for.
    scores_prompt: for the prompt, too; then it may be all that is wanted.
    Raises ApiError 400 that names the parameter.
    """
    asked: dict[str, Any] = {name: body.take(name, kind) for name, kind in _NUMBERS.items()}
    asked["ignore_eos"] = body.take("ignore_eos", bool, False)
    asked["stop"] = _take_stop(body)
    asked["stop_token_ids"] = tuple(body.take("stop_token_ids", list, []))
    asked["logit_bias"] = _take_logit_bias(body)
    most = _take_max_tokens(body)
    asked["max_tokens"] = default_max_tokens if most is None else most
    if scores_prompt and (logprobs is not None or (most is not None and most < 1)):
        asked["prompt_logprobs"] = logprobs or 0
    for name, value in asked.items():
        try:
            SamplingParams(**{"prompt_logprobs": asked.get("prompt_logprobs"), name: value})
        except RequestError as error:
            raise ApiError(400, str(error), param=name, code="invalid_value") from error
    return SamplingParams(**asked, logprobs=logprobs)


def choice_params(params: SamplingParams, choice: int) -> SamplingParams:
    """Those of the `choice`th answer to one prompt: each draws by a seed of its own."""
    if params.seed is None or choice == 0:
        return params
    return replace(params, seed=params.seed + choice)


def _take_stop(body: Body) -> tuple[str, ...]:
    stop = body.take("stop", default=[])
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise ApiError(400, "'stop' must be a text or a list of texts.",
                       param="stop", code="invalid_type")  # fmt: skip
    return tuple(texts)


def _take_logit_bias(body: Body) -> dict[int, float]:
    """By token ids, which are texts as all keys of JSON."""
    given = body.take("logit_bias", dict, {})
    wrong = next((each for each in given if not each.isdecimal() or not each.isascii()), None)
    if wrong is not None:
        raise ApiError(400, f"the keys of 'logit_bias' must be token ids, not {wrong!r}.",
                       param="logit_bias", code="invalid_value")  # fmt: skip
    return {int(token): bias for token, bias in given.items()}


def _take_max_tokens(body: Body) -> int | None:
    """Two names for one number, the newer of them only in chats."""
    old, new = body.take("max_tokens", int), body.take("max_completion_tokens", int)
    if old is not None and new is not None and old != new:
        raise ApiError(400, f"'max_tokens' is {old} and 'max_completion_tokens' is {new}; "
                       "give one of them.", param="max_tokens", code="invalid_value")  # fmt: skip
    found: int | None = old if new is None else new
    return found
