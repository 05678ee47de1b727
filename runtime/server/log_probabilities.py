"""Log probabilities: what a body asks of them, and how the two endpoints write them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from graphwright.runtime.log_probabilities import TokenLogprobs
from graphwright.runtime.server.body import Body
from graphwright.runtime.server.errors import ApiError
from graphwright.runtime.token_bytes import printable
from graphwright.runtime.tokenizer import Tokenizer

__all__ = ["chat_logprobs", "take_chat_logprobs", "take_text_logprobs", "text_logprobs"]

_MOST_IN_CHATS, _MOST_IN_TEXTS = 20, 5  # the API's own
_LEAST = -9999.0  # instead of minus infinity, which JSON does not have


def take_text_logprobs(body: Body) -> int | None:
    """`logprobs` of /v1/completions: how many of the most likely tokens. Raises ApiError 400."""
    most = body.take("logprobs", int)
    if most is not None and not 0 <= most <= _MOST_IN_TEXTS:
        raise _out_of_range("logprobs", _MOST_IN_TEXTS, most)
    return None if most is None else int(most)


def take_chat_logprobs(body: Body) -> int | None:
    """`logprobs` and `top_logprobs` of /v1/chat/completions, as above. Raises ApiError 400."""
    asked, most = body.take("logprobs", bool, False), body.take("top_logprobs", int, 0)
    if not 0 <= most <= _MOST_IN_CHATS:
        raise _out_of_range("top_logprobs", _MOST_IN_CHATS, most)
    if most and not asked:
        raise ApiError(400, "'top_logprobs' needs 'logprobs' to be true.",
                       param="top_logprobs", code="invalid_value")  # fmt: skip
    return most if asked else None


def _out_of_range(name: str, most: int, asked: int) -> ApiError:
    return ApiError(400, f"'{name}' must be from 0 to {most}, not {asked}.",
                    param=name, code="invalid_value")  # fmt: skip


def chat_logprobs(found: Sequence[TokenLogprobs], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """As a choice of a chat has them: an object a token, each with its bytes.

    A token that is no text by itself is written with the bytes above 127 as \\xNN. Without a
    tokenizer a token is written token_id:ID.
    """

    def entry(token: int, logprob: float) -> dict[str, Any]:
        content = None if tokenizer is None else tokenizer.token_bytes(token)
        return {
            "token": f"token_id:{token}" if content is None else printable(content),
            "logprob": max(logprob, _LEAST),
            "bytes": None if content is None else list(content),
        }

    content = [
        {**entry(each.token_id, each.logprob), "top_logprobs": [entry(*one) for one in each.top]}
        for each in found
    ]
    return {"content": content, "refusal": None}


def text_logprobs(found: Sequence[TokenLogprobs], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """As a choice of a completion has them: four lists, an item a token.

    A token that is no text by itself is written `bytes:` with those above 127 as \\xNN. The token
    itself is always among its top_logprobs; of two with the same text the likelier one. The first
    token of all has no probability: null.
    """

    def name(token: int) -> str:
        if tokenizer is None:
            return f"token_id:{token}"
        content = tokenizer.token_bytes(token)
        text = printable(content)
        return text if text.encode() == content else f"bytes:{text}"

    top: list[dict[str, float] | None] = []
    for each in found:
        if math.isnan(each.logprob):
            top.append(None)
            continue
        best = {name(each.token_id): max(each.logprob, _LEAST)}
        for token, logprob in reversed(each.top):
            best[name(token)] = max(logprob, _LEAST)
        top.append(dict(sorted(best.items(), key=lambda item: -item[1])))
    return {
        "tokens": [name(each.token_id) for each in found],
        "token_logprobs": [
            None if math.isnan(each.logprob) else max(each.logprob, _LEAST) for each in found
        ],
        "top_logprobs": top,
        "text_offset": [each.text_offset for each in found],
    }
