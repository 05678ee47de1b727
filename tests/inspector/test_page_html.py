"""The page as a file: whole, closed to the network, the same again, and no markup of others."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from artifact_entries import Entries

from graphwright.inspector.page_data import page_data
from graphwright.inspector.page_html import DATA_ID, page_html, page_script
from graphwright.inspector.roofline import Machine

HOSTILE = "</script><img src=x onerror=alert(1)><!--\u2028${7*7}'\"&amp;"


class Page(HTMLParser):
    """Elements and the texts of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id") or tag

    def handle_data(self, data: str) -> None:
        self.texts[self._inside] = self.texts.get(self._inside, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    @property
    def data(self) -> Any:
        return json.loads(self.texts[DATA_ID])

    @property
    def ids(self) -> set[str]:
        return {each["id"] for _, each in self.tags if each.get("id")}  # type: ignore[misc]


@pytest.fixture(scope="module")
def text(entries: Entries) -> str:
    return page_html(entries, "tiny.gw")


def test_the_data_in_the_page_is_the_data(text: str, entries: Entries) -> None:
    assert Page(text).data == page_data(entries, "tiny.gw")


def test_the_same_artifact_gives_the_same_bytes(text: str, entries: Entries) -> None:
    assert page_html(Entries(entries), "tiny.gw") == text


def test_the_page_asks_for_nothing(text: str) -> None:
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form"), tag
        assert not {"src", "href", "srcset", "data"} & set(attributes), (tag, attributes)
    assert set(re.findall(r"https?://[^\s\"'`)]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\bfetch\(|XMLHttpRequest|import\(|@import|url\(", text)


def test_its_policy_allows_its_own_script_and_style_alone(text: str) -> None:
    page = Page(text)
    (policy,) = (each["content"] for tag, each in page.tags
                 if each.get("http-equiv") == "Content-Security-Policy")  # fmt: skip
    assert policy is not None and policy.startswith("default-src 'none'; ")
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.texts[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_every_element_that_the_scripts_look_up_is_there(text: str) -> None:
    wanted = set(re.findall(r'byId\("([\w-]+)"\)', page_script()))
    assert wanted and wanted <= Page(text).ids


def test_the_scripts_make_text_and_never_markup() -> None:
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", page_script()
    )


@pytest.mark.parametrize("where", ["names", "title"])
def test_names_of_a_checkpoint_are_text(entries: Entries, text: str, where: str) -> None:
    weight = "model_layers_0_self_attn_q_k_v_proj_weight"
    hostile = entries.replaced(weight, HOSTILE) if where == "names" else entries
    assert where == "title" or hostile != entries
    log = hostile.json("log.json")
    log[1]["misses"], log[1]["notes"] = [HOSTILE], [HOSTILE]
    made = page_html(hostile.changed(log=log), HOSTILE if where == "title" else "tiny.gw")
    page = Page(made)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in Page(text).tags]
    assert page.data["passes"][1]["notes"] == [HOSTILE]
    assert HOSTILE not in made and "<img" not in made
    if where == "names":
        assert any(HOSTILE in line for line in page.data["lines"])


def test_a_machine_that_was_given_is_where_the_reader_begins(entries: Entries) -> None:
    made = page_html(entries, "tiny.gw", machine=Machine(37.5, 150.0, 600.0))
    assert Page(made).data["machine"] == {"bandwidth": 37.5, "float32": 150.0, "int8": 600.0}
