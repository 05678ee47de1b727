"""`graphwright inspect FILE --html OUT`, and what it says when it cannot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_page_html import Page

from graphwright.__main__ import main


def test_it_writes_the_page_and_says_where(
    artifact_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert main(["inspect", str(artifact_path), "--html", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 0.")
    data = Page(out.read_text(encoding="utf-8")).data
    assert data["title"] == artifact_path.name
    assert all(row["what"] and row["group"] for row in data["passes"])
    assert data["machine"]["bandwidth"] == 20.0
    first = out.read_bytes()
    assert main(["inspect", str(artifact_path), "--html", str(out)]) == 0
    assert out.read_bytes() == first


def test_the_machine_of_the_predictions_can_be_given(artifact_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    given = ["--bandwidth", "37.5", "--gops", "150", "600"]
    assert main(["inspect", str(artifact_path), "--html", str(out), *given]) == 0
    data = Page(out.read_text(encoding="utf-8")).data
    assert data["machine"] == {"bandwidth": 37.5, "float32": 150.0, "int8": 600.0}


def test_a_files_name_may_be_anything(artifact_path: Path, tmp_path: Path) -> None:
    strange = os.fsdecode(b"a<b>\xff.gw")
    (tmp_path / strange).write_bytes(artifact_path.read_bytes())
    out = tmp_path / "page.html"
    assert main(["inspect", str(tmp_path / strange), "--html", str(out)]) == 0
    assert Page(out.read_text(encoding="utf-8")).data["title"] == "a<b>\ufffd.gw"


@pytest.mark.parametrize("flags", [["--passes"], ["--json"], ["--graph", "last"]])
def test_it_is_a_view_of_its_own(
    flags: list[str], artifact_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert main(["inspect", str(artifact_path), "--html", str(out), *flags]) == 2
    assert "--html holds every view: give it alone." in capsys.readouterr().err
    assert not out.exists()


def test_it_does_not_write_over_what_it_reads(
    artifact_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = artifact_path.read_bytes()
    assert main(["inspect", str(artifact_path), "--html", str(artifact_path)]) == 2
    assert "would write over" in capsys.readouterr().err
    assert artifact_path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_a_sentence(
    artifact_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "nowhere" / "page.html"
    assert main(["inspect", str(artifact_path), "--html", str(out)]) == 1
    assert f"{out} cannot be written: No such file or directory." in capsys.readouterr().err
