"""The page is one file: valid HTML with everything inside, nothing fetched, all text escaped."""

import base64
import re
from html.parser import HTMLParser

import pytest

from jaxseg.errors import StorageError
from jaxseg.report import Figure, Section, Table, Text, curve_figure, write_page

EVIL = '<script>alert("x")</script> & "quotes" \'too\''
VOID = {"meta", "img", "br", "link", "hr"}


class Reader(HTMLParser):
    """Tags with their attributes and the text between; fails on tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def png() -> bytes:
    return curve_figure({"a": [(0, 1.0), (1, 0.5)]}, ylabel="loss")


@pytest.fixture
def page(tmp_path, png):
    parts = [Text(EVIL), Figure(png, EVIL, EVIL), Table([EVIL, "Dice"], [[EVIL, "0.9"], ["b", "0.8"]], EVIL)]
    path = write_page(tmp_path / "deep" / "report.html", EVIL, EVIL, [Section(EVIL, parts), Section("Empty", [])])
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return path, reader


def test_it_is_one_file_that_fetches_nothing(page):
    path, reader = page
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import|<script|<link|<iframe", text)
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in reader.all("img"))


def test_all_text_is_escaped_and_arrives_as_it_was(page):
    _, reader = page
    assert not reader.all("script")
    # title, heading, lead, section, paragraph, two captions, head of a column, cell
    assert reader.text.count(EVIL) == 9
    assert reader.all("img")[0]["alt"] == EVIL


def test_the_picture_inside_is_the_picture_given(page, png):
    _, reader = page
    assert base64.b64decode(str(reader.all("img")[0]["src"]).partition(",")[2]) == png


def test_it_serves_phones_readers_and_the_law(page):
    _, reader = page
    assert reader.all("html") == [{"lang": "en"}]
    assert {"charset": "utf-8"} in reader.all("meta")
    assert any("width=device-width" in str(meta.get("content")) for meta in reader.all("meta"))
    assert all(head["scope"] == "col" for head in reader.all("th"))
    assert "Research use only" in reader.text
    assert "prefers-color-scheme: dark" in reader.text and "@media print" in reader.text


def test_equal_content_is_an_equal_file(tmp_path, png):
    sections = [Section("s", [Figure(png, "alt")])]
    first, second = (write_page(tmp_path / name, "t", "l", sections).read_bytes() for name in ("1.html", "2.html"))
    assert first == second


def test_a_place_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        write_page(tmp_path / "report.html", "t", "l", [])
    assert list(tmp_path.iterdir()) == []
