"""The option --speculate of run, chat, serve and bench, over a toy that repeats itself."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from echo_toy import EchoToy, echo_greedy
from served_toy import chat_toy
from toy_model import PLAN

from graphwright.__main__ import main

LARGE = {**PLAN["weights"], "bytes_per_token": 10**9}
IDS = ",".join(["5"] * 9)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(
        "graphwright.runtime.engine.NativeLibrary", lambda *_, **__: EchoToy("largest")
    )
    return str(chat_toy(tmp_path / "toy.gw", weights=LARGE))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    assert main(list(arguments)) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_run_says_what_came_of_guesses(capsys: pytest.CaptureFixture[str], toy: str) -> None:
    command = ["run", toy, "--prompt-ids", IDS, "--max-tokens", "30", "--ignore-eos"]
    plain, figures = run(capsys, *command)
    assert "guessed" not in figures
    guessing, figures = run(capsys, *command, "--speculate", "lookup:2")
    assert guessing == plain
    found = json.loads(run(capsys, *command, "--speculate", "lookup:2", "--json")[0])
    assert found["outputs"][0]["token_ids"] == echo_greedy([5] * 9, 30)
    drafted, accepted = found["drafted_tokens"], found["accepted_tokens"]
    assert 0 < accepted < drafted
    assert found["tokens_per_step"] == round(29 / (29 - accepted), 3)
    share = figures.split("guessing took ")[1].split()[0]
    assert share.endswith("%") and 0 < int(share[:-1]) < 100 and 0 < found["draft_share"] < 1
    assert figures.endswith(
        f"; {accepted} of {drafted} guessed tokens accepted, {29 / (29 - accepted):.2f} tokens a "
        f"step, guessing took {share} of decoding\n"
    )
    assert "drafted_tokens" not in json.loads(run(capsys, *command, "--json")[0])


def test_bench_does_too(capsys: pytest.CaptureFixture[str], toy: str) -> None:
    command = ["bench", toy, "--prompt-len", "12", "--gen-len", "30", "--reps", "1"]
    out, _ = run(capsys, *command, "--speculate", "lookup")
    assert "drafted_tokens" in out and "accepted_tokens" in out and "tokens_per_step" in out
    assert "draft_share" in out
    assert "drafted_tokens" not in run(capsys, *command)[0]
    found: dict[str, Any] = json.loads(run(capsys, *command, "--speculate", "lookup", "--json")[0])
    steps = 2 * 29 - found["accepted_tokens"]
    assert found["tokens_per_step"] == round(2 * 29 / steps, 3) > 1
    bytes_per_step = 10**9 / found["tokens_per_step"]
    assert found["effective_gbps"] == pytest.approx(
        found["decode_tps"] * bytes_per_step / 1e9, 1e-3
    )
    assert main([*command, "--profile", "--speculate", "lookup"]) == 2
    assert "--profile times steps of one token: leave --speculate out" in capsys.readouterr().err


def test_chat_gives_the_same_answers(
    capsys: pytest.CaptureFixture[str], toy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    for options in ([], ["--speculate", "lookup"]):
        turns = io.TextIOWrapper(io.BytesIO(b"hello hello hello\nagain\n"))
        monkeypatch.setattr(sys, "stdin", turns)
        answers.append(run(capsys, "chat", toy, "--max-tokens", "8", *options))
    assert answers[0] == answers[1] and answers[0][0].strip()


@pytest.mark.parametrize("verb", ["run", "chat", "serve", "bench"])
def test_what_cannot_be_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, toy: str, verb: str
) -> None:
    words = {"run": ["--prompt-ids", "1"], "serve": ["--port", "0"]}.get(verb, [])
    rolling = str(chat_toy(tmp_path / "r.gw", kv={**PLAN["kv"], "rolling": ["conv"]}))
    for path, asked, message in (
        (
            toy,
            "ngram",
            "must be 'lookup' or 'draft:FILE', either with or without ':N' behind it, N "
            "from 1 to 3, not 'ngram'.",
        ),
        (rolling, "lookup", "it has recurrent or rolling states"),
    ):
        assert main([verb, path, *words, "--speculate", asked]) == 1
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""
