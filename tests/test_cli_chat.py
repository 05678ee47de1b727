"""The verb chat: a terminal, a pipe, Ctrl-C, and models that cannot talk."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from served_toy import chat_toy
from toy_model import ToyLibrary, word_tokenizer, write_toy

from graphwright.__main__ import main
from graphwright.commands import chat, dependencies


class Interrupting(ToyLibrary):
    """Presses Ctrl-C in the step of this number."""

    interrupt_at = 0

    def run(self, *arguments: Any) -> Any:
        found = super().run(*arguments)
        if len(self.steps) == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        return found


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Interrupting]:
    """Ctrl-C is what it is in a terminal, also where a shell started this in the background."""
    found = Interrupting()
    monkeypatch.setattr("graphwright.runtime.engine.NativeLibrary", lambda *_, **__: found)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield found
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def toy(tmp_path: Path, library: ToyLibrary) -> str:
    return str(chat_toy(tmp_path / "toy.gw"))


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def terminal(monkeypatch: pytest.MonkeyPatch, *turns: str | type[BaseException]) -> list[str]:
    """A terminal where these turns are typed, or keys pressed; the prompts that it shows."""
    prompts: list[str] = []
    typed: Iterator[str | type[BaseException]] = iter((*turns, EOFError))

    def ask(prompt: str) -> str:
        prompts.append(prompt)
        turn = next(typed)
        if isinstance(turn, str):
            return turn
        raise turn

    monkeypatch.setattr(chat, "_is_interactive", lambda: True)
    monkeypatch.setattr("builtins.input", ask)
    return prompts


OPTIONS = ["--max-tokens", "6", "--ignore-eos", "--temperature", "0"]


def test_each_line_of_a_pipe_is_a_turn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], toy: str
) -> None:
    pipe(monkeypatch, b"Hi\n\n  and  \n/reset\nHi\n/exit\nnever\n")
    assert main(["chat", toy, *OPTIONS]) == 0
    captured = capsys.readouterr()
    first, second, third, *rest = captured.out.split("\n")
    assert first == third != second and rest == [""]
    assert captured.err.count("cut short") == 3
    pipe(monkeypatch, b"Hi")
    assert main(["chat", toy, *OPTIONS, "--system", "S"]) == 0
    assert capsys.readouterr().out.rstrip("\n") not in {first, second}


def test_a_line_that_cannot_be_answered_is_said_and_the_next_is_answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], toy: str
) -> None:
    pipe(monkeypatch, b"Hi\n/reset\n" + b"x" * 80 + b"\na\xff\nHi\n")
    assert main(["chat", toy, *OPTIONS]) == 0
    captured = capsys.readouterr()
    first, second, *rest = captured.out.split("\n")
    assert first == second and rest == [""]
    assert "the context holds 64" in captured.err and "not valid UTF-8" in captured.err
    assert captured.err.count("/reset forgets") == 4 and "Traceback" not in captured.err


def test_a_terminal_and_its_keys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], toy: str
) -> None:
    prompts = terminal(monkeypatch, "Hi", KeyboardInterrupt, "", "and", "/reset", "Hi")
    assert main(["chat", toy, *OPTIONS]) == 0
    captured = capsys.readouterr()
    first, second, third, *rest = captured.out.split("\n")
    assert first == third != second and rest == ["", ""]  # Ctrl-D ends its line, too
    assert prompts == ["> "] * 7 and captured.err.count("Control-D leaves") == 2


def test_an_interrupt_stops_the_answer_and_not_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], toy: str,
    library: Interrupting,
) -> None:  # fmt: skip
    terminal(monkeypatch, "Hi", "/reset", "Hi", "/exit")
    library.interrupt_at = 3
    handler = signal.getsignal(signal.SIGINT)
    assert main(["chat", toy, "--ignore-eos", "--temperature", "0"]) == 0
    stopped, whole, *rest = capsys.readouterr().out.split("\n")
    assert rest == [""] and whole.startswith(stopped)
    assert 0 < len(stopped) <= 3 < len(whole)
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_interrupt_of_a_pipe_ends_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], toy: str,
    library: Interrupting,
) -> None:  # fmt: skip
    pipe(monkeypatch, b"Hi\nHi\n")
    library.interrupt_at = 3
    assert main(["chat", toy, *OPTIONS]) == 130
    assert capsys.readouterr().err.strip().endswith("interrupted")


def test_a_model_without_a_template_is_pointed_to_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, library: ToyLibrary
) -> None:
    path = write_toy(tmp_path / "plain.gw", tokenizer=word_tokenizer())
    assert main(["chat", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert f"without a chat template; complete texts with it instead: graphwright run {path}" in (
        captured.err
    )
    bare = write_toy(tmp_path / "bare.gw", chat_template="{{ messages }}")
    assert main(["chat", str(bare)]) == 1
    assert "has no tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "absent"),
    [("chat", "jinja2"), ("serve", "starlette"), ("serve", "uvicorn"), ("serve", "jinja2")],
)
def test_a_missing_package_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], toy: str, verb: str,
    absent: str,
) -> None:  # fmt: skip
    def find(name: str) -> ModuleSpec | None:
        return None if name == absent else ModuleSpec(name, None)

    monkeypatch.setattr(dependencies, "find_spec", find)
    assert main([verb, toy]) == 1
    error = capsys.readouterr().err
    assert f"'{verb}' needs {absent}, " in error and error.count("\n") == 1
    assert "pip install 'graphwright[serve]'" in error
