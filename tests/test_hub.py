"""Models by their names on the Hugging Face Hub, from a Hub on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, hub
from tiny_models import save_tiny

from graphwright.commands.model_argument import default_output
from graphwright.frontend.checkpoint_files import checkpoint_name
from graphwright.hub import HubModel


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[str]]]:
    directory = save_tiny("llama", tmp_path_factory.mktemp("hub") / "Tiny-0.1B", num_layers=1)
    (directory / "modeling_tiny.py").write_text("raise SystemExit('not asked for')\n")
    (directory / "consolidated.safetensors").write_bytes(b"the same weights for another library")
    for part in ("quants/Tiny-Q8_0-00001-of-00002.gguf", "quants/Tiny-Q8_0-00002-of-00002.gguf"):
        (directory / part).parent.mkdir(exist_ok=True)
        (directory / part).write_bytes(b"GGUF" + part.encode())
    (directory / "original").mkdir()
    (directory / "original" / "params.json").write_text("{}")
    with hub("org/Tiny-0.1B", directory) as (address, given):
        yield address, given


def python(
    *arguments: str, home: Path, address: str | None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """A process of its own: huggingface_hub reads its variables when it is imported."""
    settings = {"HF_HUB_OFFLINE": "1"} if address is None else {"HF_ENDPOINT": address}
    environment = {**os.environ, **settings, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment,
        cwd=home, check=check,
    )  # fmt: skip


def test_a_model_by_its_name(online: tuple[str, list[str]], tmp_path: Path) -> None:
    address, given = online
    given.clear()
    compiling = python(
        "-m", "graphwright", "compile", "org/Tiny-0.1B", "--no-check", home=tmp_path,
        address=address,
    )  # fmt: skip
    assert "Tiny-0.1B-f32.gw: " in compiling.stdout and not compiling.stderr
    assert sorted(given) == ["config.json", "generation_config.json", "model.safetensors"]
    given.clear()  # a second time without a network, and as the same model at its commit
    plan = "-m", "graphwright", "plan"
    offline = python(*plan, "hf://org/Tiny-0.1B", home=tmp_path, address=None)
    again = python(*plan, f"org/Tiny-0.1B@{COMMIT}", home=tmp_path, address=None)
    assert offline.stdout.splitlines()[1:] == again.stdout.splitlines()[1:] and not given


def test_a_plan_fetches_the_configuration_alone(
    online: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, given = online
    given.clear()
    result = python(
        "-m", "graphwright", "plan", "org/Tiny-0.1B", home=tmp_path, address=address
    )  # fmt: skip
    assert given == ["config.json"]
    assert "note: of org/Tiny-0.1B config.json alone was fetched" in result.stdout


def test_a_file_of_several_parts(online: tuple[str, list[str]], tmp_path: Path) -> None:
    address, given = online
    given.clear()
    code = (
        "import sys; from graphwright.hub import *\n"
        "print(HubModel.parse(sys.argv[1]).on_disk(weights=False).read_bytes().decode())"
    )
    name = "quants/Tiny-Q8_0-00001-of-00002.gguf"
    found = python("-c", code, f"org/Tiny-0.1B/{name}", home=tmp_path, address=address)
    assert found.stdout == f"GGUF{name}\n"
    assert sorted(given) == [name, name.replace("00001-", "00002-")]


def test_what_cannot_be_fetched_is_one_sentence(
    online: tuple[str, list[str]], tmp_path: Path
) -> None:
    code = (
        "import sys; from graphwright.hub import *\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(HubModel.parse(name).on_disk())\n"
        "    except HubError as error: print(error)\n"
        "print('torch' in sys.modules)"
    )
    names = ("org/other", "org/Tiny-0.1B@v2", "gated/model", "broken/model", "org/a--b",
             "org/Tiny-0.1B/none.gguf")  # fmt: skip
    said = python("-c", code, *names, home=tmp_path, address=online[0]).stdout.splitlines()
    assert said[0].startswith("there is no directory 'org/other' here, and no such model on the")
    assert said[1] == "'org/Tiny-0.1B' of the Hugging Face Hub has no revision 'v2'."
    assert "'gated/model' of the Hugging Face Hub is for those who accepted its terms" in said[2]
    assert said[3].startswith("there is no directory 'broken/model' here, and 'broken/model' of")
    assert said[4].startswith("there is no directory 'org/a--b' here, and no such model")
    assert said[5] == "'org/Tiny-0.1B' of the Hugging Face Hub has no 'none.gguf'."
    assert said[6:] == ["False"]


def test_an_interrupted_download_is_not_taken_for_a_model(
    online: tuple[str, list[str]], tmp_path: Path
) -> None:
    python("-m", "graphwright", "plan", "org/Tiny-0.1B", home=tmp_path, address=online[0])
    result = python(
        "-m", "graphwright", "compile", "org/Tiny-0.1B", home=tmp_path, address=None, check=False
    )
    assert result.returncode == 1
    assert "is in the cache" in result.stderr and "HF_HUB_OFFLINE is set" in result.stderr


def test_which_texts_name_a_model_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "here").mkdir()
    parse = HubModel.parse
    assert parse("org/name") == HubModel("org/name")
    assert parse("hf://org/name@refs/pr/3") == HubModel("org/name", "refs/pr/3")
    assert parse("org/name/a/b.gguf@main") == HubModel("org/name", "main", "a/b.gguf")
    assert parse("org/here") is None and parse("hf://org/here") == HubModel("org/here")
    for path in ("name", "./org/name", "/org/name", "a/b/c", "org/", "org/name/", "../name",
                 "org/model.onnx"):  # fmt: skip
        assert parse(path) is None


def test_names_keep_their_dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    snapshot = tmp_path / "models--org--Tiny-0.1B" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (tmp_path / "Tiny-0.2B").mkdir()
    assert checkpoint_name(snapshot) == "Tiny-0.1B"
    assert checkpoint_name(tmp_path / "Tiny-0.2B") == "Tiny-0.2B"
    (tmp_path / "Tiny-0.2B" / "model.onnx").touch()
    named = {
        "org/Tiny-0.1B": "Tiny-0.1B-w8.gw",
        "Tiny-0.2B": "Tiny-0.2B-w8.gw",
        "Tiny-0.2B/model.onnx": "Tiny-0.2B-w8.gw",
        "net.py:make": "net-w8.gw",
        "decoder.onnx": "decoder-w8.gw",
    }
    assert {model: str(default_output(model, model, "w8")) for model in named} == named
    assert default_output("org/Tiny-0.1B", str(snapshot), None) == Path("Tiny-0.1B-f32.gw")
