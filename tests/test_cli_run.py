"""The verbs run, eval and bench on the command line, over the toy model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toy_model import VOCAB, ToyLibrary, toy_greedy, word_tokenizer, write_toy

from graphwright.__main__ import main
from graphwright.cli import VERBS


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("graphwright.runtime.engine.NativeLibrary", lambda *_, **__: ToyLibrary())
    return str(write_toy(tmp_path / "toy.gw", tokenizer=word_tokenizer()))


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("graphwright.runtime.engine.NativeLibrary", lambda *_, **__: ToyLibrary())
    return str(write_toy(tmp_path / "bare.gw"))


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    found: dict[str, Any] = json.loads(captured.out)
    return found


def test_run_json(capsys: pytest.CaptureFixture[str], bare: str) -> None:
    found = run_json(
        capsys, "run", bare, "--prompt-ids", "1,2,3", "--prompt-ids", "4", "--max-tokens", "5"
    )
    assert found["outputs"] == [
        {"text": "", "token_ids": toy_greedy(ids, 5), "prompt_tokens": len(ids),
         "finish_reason": "length"}
        for ids in ([1, 2, 3], [4])
    ]  # fmt: skip
    assert {"load_s", "ttft_s", "prefill_tps", "decode_tps", "peak_rss_mb"} <= set(found)
    assert all(found[name] > 0 for name in ("load_s", "ttft_s", "peak_rss_mb"))


def test_run_writes_log_probabilities(capsys: pytest.CaptureFixture[str], bare: str) -> None:
    command = ["run", bare, "--prompt-ids", "1,2", "--max-tokens", "3", "--logprobs", "2"]
    (output,) = run_json(capsys, *command)["outputs"]
    assert output["token_ids"] == toy_greedy([1, 2], 3)
    for token, found in zip(output["token_ids"], output["logprobs"], strict=True):
        assert len(found["top"]) == 2 and found["top"][str(token)] == found["logprob"] < 0
    assert main(command) == 2
    assert "give --json, too" in capsys.readouterr().err
    assert main([*command[:-1], "-1", "--json"]) == 1
    assert "logprobs must be a whole number, 0 or more, not -1" in capsys.readouterr().err


def test_run_keeps_to_a_grammar(
    capsys: pytest.CaptureFixture[str], toy: str, tmp_path: Path
) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    binary = tmp_path / "binary"
    binary.write_bytes(b"{}\xff")
    schema.write_text(
        '{"type": "array", "items": {"enum": [1, "x"]}, "minItems": 2, "maxItems": 3}'
    )
    grammar.write_text('start: "<" /[a-c]{2}/ ">"')
    command = ["run", toy, "--prompt", "ab", "--temperature", "2", "--seed", "1"]
    for extra in (["--json-schema", str(schema)], ["--regex", "[0-9]{4}"],
                  ["--grammar", str(grammar)]):  # fmt: skip
        assert main([*command, *extra]) == 0
        text = capsys.readouterr().out.rstrip("\n")
        if "--json-schema" in extra:
            found = json.loads(text)
            assert 2 <= len(found) <= 3 and all(each in (1, "x") for each in found)
        else:
            assert re.fullmatch("[0-9]{4}|<[a-c]{2}>", text)
    for wrong, code, words in (
        (["--regex", "(a"], 1, "unclosed group."),
        (["--json-schema", str(grammar)], 1, "the JSON schema is not JSON"),
        (["--json-schema", str(binary)], 1, "binary is not UTF-8 text: byte 2 is wrong"),
        (["--grammar", str(binary)], 1, "binary is not UTF-8 text: byte 2 is wrong"),
        (["--json-schema", str(tmp_path / "nothing")], 2, "No such file"),
        (["--regex", "a", "--grammar", str(grammar)], 2, "give one of"),
    ):
        assert main([*command, *wrong]) == code
        assert words in capsys.readouterr().err


def test_run_changes_logits(capsys: pytest.CaptureFixture[str], bare: str) -> None:
    command = ["run", bare, "--prompt-ids", "1,2", "--max-tokens", "4", "--logit-bias"]
    (output,) = run_json(capsys, *command, "7=100", "--frequency-penalty", "2")["outputs"]
    assert output["token_ids"] == [7] * 4
    assert main([*command, "7"]) == 2
    assert "'7' is not a token id and its bias such as 50=-100" in capsys.readouterr().err
    assert main([*command, "97=1"]) == 1
    assert "logit_bias has the token id 97; this model's ids are 0 to 96" in capsys.readouterr().err


def test_run_streams_text(capsys: pytest.CaptureFixture[str], toy: str) -> None:
    assert main(["run", toy, "--prompt", "Hello", "--max-new-tokens", "6", "--ignore-eos"]) == 0
    captured = capsys.readouterr()
    found = run_json(capsys, "run", toy, "--prompt", "Hello", "--max-tokens", "6", "--ignore-eos")
    assert captured.out == found["outputs"][0]["text"] + "\n"
    assert found["outputs"][0]["prompt_tokens"] == 6  # with <s>
    assert captured.err.startswith("6 tokens; import ")


def test_run_says_when_the_context_ended_a_text(
    capsys: pytest.CaptureFixture[str], bare: str
) -> None:
    command = ["run", bare, "--prompt-ids", "1,2", "--context", "10", "--max-tokens"]
    assert main([*command, "9"]) == 0
    assert capsys.readouterr().err.splitlines()[1:] == [
        "the context of 10 tokens is full; --context takes up to 64"
    ]
    assert main([*command, "8"]) == 0
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_run_writes_ids_without_a_tokenizer(capsys: pytest.CaptureFixture[str], bare: str) -> None:
    expected = toy_greedy([1], 4)
    for extra in ([], ["--no-stream"]):
        assert main(["run", bare, "--prompt-ids", "1", "--max-tokens", "4", *extra]) == 0
        assert [int(each) for each in capsys.readouterr().out.split()] == expected


def test_run_several_prompts_and_stop(capsys: pytest.CaptureFixture[str], toy: str) -> None:
    text = run_json(capsys, "run", toy, "--prompt", "ab", "--ignore-eos")["outputs"][0]["text"]
    stop = text[5:7]
    found = run_json(capsys, "run", toy, "--prompt", "ab", "--stop", stop, "--ignore-eos")
    output = found["outputs"][0]
    assert output["text"] == text[: text.index(stop)] and output["finish_reason"] == "stop"
    assert main(["run", toy, "--prompt", "ab", "--prompt", "cd", "--max-tokens", "3"]) == 0
    out = capsys.readouterr().out
    assert "--- prompt 1\n" in out and "--- prompt 2\n" in out


def test_sampling_options_arrive(capsys: pytest.CaptureFixture[str], bare: str) -> None:
    command = ["run", bare, "--prompt-ids", "7", "--max-tokens", "8", "--temperature", "2"]
    command += ["--top-k", "9", "--top-p", "0.9", "--min-p", "0.01", "--repetition-penalty", "1.1"]
    first, second, other = (
        run_json(capsys, *command, "--seed", seed)["outputs"][0]["token_ids"] for seed in "112"
    )
    assert first == second != other


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--prompt-ids", f"1,{VOCAB}"], 1, f"the token id {VOCAB}"),
        (["--prompt-ids", ","], 1, "the prompt is empty"),
        (["--prompt-ids", ",".join(["1"] * 70)], 1, "70 tokens, but the context holds 64"),
        (["--prompt", "text"], 1, "no tokenizer"),
        (["--prompt-ids", "1", "--context", "100"], 1, "from 1 to 64 tokens, not 100"),
        (["--prompt-ids", "1", "--top-p", "2"], 1, "top_p must be above 0 and at most 1, not 2"),
        (["--prompt-ids", "1,b"], 2, "not a list of token ids"),
        ([], 2, "nothing to complete"),
        (["--nonsense"], 2, "No such option"),
    ],
)
def test_bad_requests(
    capsys: pytest.CaptureFixture[str], bare: str, arguments: list[str], code: int, message: str
) -> None:
    assert main(["run", bare, *arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
    assert "Traceback" not in captured.err


def test_stray_bytes_in_a_prompt(capsys: pytest.CaptureFixture[str], toy: str) -> None:
    assert main(["run", toy, "--prompt", "a\udcff"]) == 1
    assert "not valid UTF-8 text: its character 1" in capsys.readouterr().err


def test_an_interrupt_is_exit_code_130(
    capsys: pytest.CaptureFixture[str], bare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ToyLibrary, "run", interrupted)
    assert main(["run", bare, "--prompt-ids", "1"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_an_empty_text_is_an_empty_prompt(capsys: pytest.CaptureFixture[str], toy: str) -> None:
    assert main(["run", toy, "--prompt", ""]) == 1
    assert "the prompt is empty" in capsys.readouterr().err


def test_bad_artifacts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write_toy(tmp_path / "m.gw")
    data = path.read_bytes()
    for content, message in (
        (data[: len(data) // 2], "truncated or damaged"),
        (data[:5000] + bytes([data[5000] ^ 4]) + data[5001:], "is damaged"),
        (b"", "not a graphwright artifact"),
    ):
        path.write_bytes(content)
        assert main(["run", str(path), "--prompt-ids", "1"]) == 1
        error = capsys.readouterr().err
        assert message in error and error.startswith("graphwright: ") and error.count("\n") == 1
    assert main(["run", str(tmp_path / "none.gw"), "--prompt-ids", "1"]) == 1
    assert "No such file" in capsys.readouterr().err


def test_eval(capsys: pytest.CaptureFixture[str], toy: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was a dark and stormy night. " * 8)
    found = run_json(capsys, "eval", toy, str(text), "--window", "20", "--stride", "10")
    assert set(found) == {"tokens", "nll", "ppl"} and found["tokens"] == len(text.read_text())
    assert main(["eval", toy, str(text), "--window", "20"]) == 0
    assert capsys.readouterr().out.startswith("256 tokens, nll ")
    for content, message in ((b"\xff", "not UTF-8 text: byte 0"), (b"", "nothing to score")):
        text.write_bytes(content)
        assert main(["eval", toy, str(text)]) == 1
        assert message in capsys.readouterr().err
    assert main(["eval", toy, str(tmp_path / "none.txt")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_eval_against_another(
    capsys: pytest.CaptureFixture[str], toy: str, bare: str, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was a dark and stormy night. " * 8)
    command = ["eval", toy, str(text), "--against", toy, "--window", "20"]
    found = run_json(capsys, *command)
    assert (found["tokens"], found["kl_mean"], found["same_top"]) == (256, 0, 1)
    assert found["nll"] == found["reference_nll"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["tokens", "256"] and len(lines) == 14
    assert "same most likely token   100.000% ± 0.000%" in lines
    assert main(["eval", toy, str(text), "--against", bare]) == 1
    error = capsys.readouterr().err
    assert "bare.gw has no tokenizer" in error and error.count("\n") == 1
    assert main(["eval", toy, str(text), "--against", str(tmp_path / "none.gw")]) == 1
    assert "none.gw cannot be read: No such file" in capsys.readouterr().err


def test_bench(capsys: pytest.CaptureFixture[str], bare: str) -> None:
    command = ["bench", bare, "--prompt-len", "12", "--gen-len", "8", "--reps", "2"]
    found = run_json(capsys, *command)
    assert {"prefill_tps", "decode_tps", "ttft_s", "load_s", "peak_rss_mb", "artifact_mb",
            "weight_bytes_per_token", "effective_gbps"} <= set(found)  # fmt: skip
    assert found["weight_bytes_per_token"] == 256 and found["decode_tps"] > 0
    assert main(command) == 0
    assert "decode_tps" in capsys.readouterr().out
    assert main(["bench", bare, "--prompt-len", "60", "--gen-len", "8"]) == 1
    assert "60 prompt and 8 generated tokens do not fit" in capsys.readouterr().err


def test_help_names_every_verb_and_imports_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(verb in out and text in out for verb, text in VERBS.items())
    assert main(["nonsense"]) == 2
    assert "No such command 'nonsense'" in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("graphwright ")


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_importing_is_light() -> None:
    code = "import sys, graphwright; graphwright.SamplingParams; print('numpy' in sys.modules)"
    assert python(code) == "False\n"
    code = (
        "import sys, graphwright.runtime.engine, graphwright.runtime.library\n"
        "import graphwright.cli, graphwright.commands.run\n"
        "import graphwright.commands.serve, graphwright.commands.chat\n"
        "import graphwright.runtime.conversation, graphwright.runtime.server\n"
        "heavy = {'torch', 'tvm', 'tvm_ffi', 'rich', 'transformers', 'graphwright.ir',\n"
        "         'starlette', 'uvicorn', 'jinja2'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert python(code) == "[]\n"


def test_a_missing_checkpoint_is_said_before_torch_is_imported() -> None:
    code = (
        "import sys; from graphwright.__main__ import main\n"
        "codes = [main(['compile', name]) for name in ('./no/such-model', 'no/such-model')]\n"
        "print(codes, 'torch' in sys.modules)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": "/nowhere"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert result.stdout == "[1, 1] False\n"
    assert "there is no file or directory './no/such-model': MODEL is a" in result.stderr
    assert "'no/such-model' of the Hugging Face Hub is neither in the cache (/nowh" in result.stderr


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:2]\n"
        "import graphwright.runtime.engine as engine\n"
        "from toy_model import *\n"
        "engine.NativeLibrary = lambda *_, **__: ToyLibrary()\n"
        "from graphwright.__main__ import main\n"
        "sys.exit(main(['run', sys.argv[2], '--prompt-ids', '1', '--max-tokens', '60']))"
    )
    path = write_toy(tmp_path / "m.gw")
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() in (1, 141)  # click says 1
