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


@pytest.fixture
def small(toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A draft for the toy that knows what it says."""
    monkeypatch.setattr(
        "graphwright.runtime.draft_artifact.DraftSetup._library", lambda *_: EchoToy()
    )
    weights = {**PLAN["weights"], "bytes_per_token": 10**8}
    return str(chat_toy(tmp_path / "small.gw", weights=weights))


def test_a_draft_model_guesses_in_every_verb(
    capsys: pytest.CaptureFixture[str], toy: str, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["run", toy, "--prompt-ids", IDS, "--max-tokens", "30", "--ignore-eos"]
    plain, _ = run(capsys, *command)
    for asked, least in ((f"draft:{small}", 3.0), (f"draft:{small}:1", 1.8)):
        assert run(capsys, *command, "--speculate", asked)[0] == plain
        found = json.loads(run(capsys, *command, "--speculate", asked, "--json")[0])
        assert found["accepted_tokens"] == found["drafted_tokens"] > 10
        assert found["tokens_per_step"] > least and 0 < found["draft_share"] < 1
    command = ["bench", toy, "--prompt-len", "12", "--gen-len", "30", "--reps", "1", "--json"]
    found = json.loads(run(capsys, *command, "--speculate", f"draft:{small}")[0])
    assert found["tokens_per_step"] > 2
    answers = []
    for options in ([], ["--speculate", f"draft:{small}"]):
        turns = io.TextIOWrapper(io.BytesIO(b"hello hello hello\nagain\n"))
        monkeypatch.setattr(sys, "stdin", turns)
        answers.append(run(capsys, "chat", toy, "--max-tokens", "8", *options))
    assert answers[0] == answers[1] and answers[0][0].strip()


def test_plan_counts_the_draft(capsys: pytest.CaptureFixture[str], toy: str, small: str) -> None:
    from graphwright.runtime.engine import Engine

    asked = ["plan", toy, "--max-sequences", "3", "--context", "40"]
    plain = json.loads(run(capsys, *asked, "--json")[0])
    beside = json.loads(run(capsys, *asked, "--speculate", f"draft:{small}:2", "--json")[0])
    assert "draft" not in plain and beside["draft"].pop("model") == small
    assert beside["planned"] == {**plain["planned"], "draft": sum(beside["draft"].values())}
    assert beside["total_bytes"] == plain["total_bytes"] + beside["planned"]["draft"]
    engine = Engine(toy, speculate=f"draft:{small}", max_sequences=3, context=40)
    assert engine.draft is not None and engine.draft.memory.allocated == beside["draft"]
    assert engine.memory.allocated == plain["planned"]
    text = run(capsys, *asked, "--speculate", f"draft:{small}")[0]
    assert any(line.startswith("draft ") and small in line for line in text.splitlines())
    assert run(capsys, *asked, "--speculate", "lookup")[0] == run(capsys, *asked)[0]
    room = str(plain["total_bytes"] + plain["process_bytes"]) + "B"
    assert main([*asked, "--memory", room]) == 0
    assert main([*asked, "--memory", room, "--speculate", f"draft:{small}"]) == 1


def test_plan_refuses_what_an_engine_refuses(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, toy: str
) -> None:
    rolling = str(chat_toy(tmp_path / "r.gw", kv={**PLAN["kv"], "rolling": ["conv"]}))
    for path, asked, message in (
        (toy, "draft:", "must be 'lookup' or 'draft:FILE'"),
        (toy, f"draft:{rolling}", f"the draft {rolling} cannot take back what it guessed wrong"),
        (rolling, f"draft:{toy}", "it has recurrent or rolling states"),
        (toy, f"draft:{tmp_path / 'no.gw'}", "no.gw cannot be read: No such file"),
    ):
        assert main(["plan", path, "--speculate", asked]) == 1
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""


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
        (toy, f"draft:{rolling}", f"the draft {rolling} cannot take back what it guessed wrong"),
    ):
        assert main([verb, path, *words, "--speculate", asked]) == 1
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""
