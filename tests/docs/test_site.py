"""The built site: links, anchors, what the search knows, and that nothing comes from another host."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest

import doc_pages

SITE = doc_pages.ROOT / "docs" / "_build" / "html"
#: Pages that Sphinx and its gallery make, without content of ours.
MADE = frozenset({"genindex.html", "search.html", "py-modindex.html"})


class Page(HTMLParser):
    """The anchors of a page, and what it links to or loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep ids, hrefs and sources."""
        values = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := values.get(name))}
        target = values.get("href") if tag in ("a", "link") else values.get("src")
        if target:
            (self.links if tag == "a" else self.loaded).append(target)


@pytest.fixture(scope="module")
def site() -> dict[Path, Page]:
    if not (SITE / "index.html").exists():
        pytest.fail(f"expected the site in {SITE}; there is none: run nox -s docs")
    pages = (path for path in SITE.rglob("*.html") if "_static" not in path.parts)  # the theme's own files
    return {path: Page(path.read_text("utf-8")) for path in pages}


def is_local(target: str) -> bool:
    return not re.match(r"[a-z]+:", target)


def test_links_and_anchors_are_there(site: dict[Path, Page]) -> None:
    wrong, links = [], 0
    for path, page in site.items():
        for target in filter(is_local, (*page.links, *page.loaded)):
            name, anchor = urldefrag(target)
            file = (path.parent / unquote(name.partition("?")[0])).resolve() if name else path
            links += 1
            if not file.exists():
                wrong.append(f"{path.relative_to(SITE)}: no {target}")
            elif anchor and file in site and unquote(anchor) not in site[file].anchors:
                wrong.append(f"{path.relative_to(SITE)}: no anchor {target}")
    assert wrong == []
    assert links > 1000


def test_every_page_is_reached_from_the_first(site: dict[Path, Page]) -> None:
    known, todo = set(), [SITE / "index.html"]
    while todo:
        path = todo.pop()
        if path in known or path not in site:
            continue
        known.add(path)
        todo += [(path.parent / unquote(urldefrag(link)[0])).resolve() for link in site[path].links if is_local(link)]
    assert {str(path.relative_to(SITE)) for path in set(site) - known} - MADE == set()


def search_index() -> dict[str, Any]:
    text = (SITE / "searchindex.js").read_text("utf-8")
    index: dict[str, Any] = json.loads(text.removeprefix("Search.setIndex(").rstrip(")"))
    return index


def test_the_page_of_a_word_comes_first(site: dict[Path, Page]) -> None:
    """A whole title is worth more to the search than a word of one, such as that of a table in a benchmark."""
    index = search_index()
    assert [index["docnames"][place] for place, _ in index["alltitles"]["Streaming"]] == ["howto/streaming"]


def test_the_search_knows_words_and_chinese_terms(site: dict[Path, Page]) -> None:
    index = search_index()
    names = index["docnames"]

    def found(term: str) -> set[str]:
        found = (index[part].get(term, []) for part in ("terms", "titleterms"))
        return {names[place] for places in found for place in (places if isinstance(places, list) else [places])}

    assert "howto/streaming" in found("stream")
    for term in ("遗忘门", "记忆单元", "候选"):
        assert any(name.startswith("lessons/zh/") for name in found(term)), term


def test_records_come_after_other_pages(site: dict[Path, Page]) -> None:
    """The names of the scorer are those of pages, and the search page has that scorer."""
    script = (SITE / "_static" / "language_data.js").read_text("utf-8")
    assert "ownTitle" in script
    (listed,) = re.findall(r"records: \[(.*)\]", script)
    names = [name.strip(' "') for name in listed.split(",")]
    assert names
    pages = search_index()["docnames"]
    for name in names:
        assert any(page.startswith(name) for page in pages), name
        assert not any(page.startswith(name) for page in pages if page.startswith(("howto/", "lessons/", "start")))


def test_the_search_page_has_its_stemmer(site: dict[Path, Page]) -> None:
    """A name in `window.Stemmer` that the script does not define ends the search without a result."""
    script = (SITE / "_static" / "language_data.js").read_text("utf-8")
    (name,) = re.findall(r"^window\.Stemmer = (.*);$", script, re.MULTILINE)
    assert re.fullmatch(r"\w+", name), name
    assert re.search(rf"(?:var|let|const|class|function) {name}\b", script), name


def test_nothing_comes_from_another_host(site: dict[Path, Page]) -> None:
    """Formulas are shown without a network too: MathJax is part of the site."""
    loaded = {target for page in site.values() for target in page.loaded}
    assert {target for target in loaded if not is_local(target)} == set()
    assert any("mathjax" in target for target in loaded)


def test_pages_in_chinese_say_so(site: dict[Path, Page]) -> None:
    """Lines of the source are joined: a line end would be shown as a space, which Chinese has not."""
    for path in site:
        text = path.read_text("utf-8")
        chinese = path.parent == SITE / "lessons" / "zh"
        assert ('<html lang="zh-CN"' in text) == chinese, path
        if chinese:
            prose = re.sub(r"<(pre|script|title)\b.*?</\1>", "", text, flags=re.DOTALL)
            assert not re.search("[\u3002\uff0c\u4e00-\u9fff]\n[\u4e00-\u9fff]", prose), path


def test_options_have_two_hyphens(site: dict[Path, Page]) -> None:
    """A typeset dash in place of them would make a command wrong that is copied."""
    for path in site:
        assert not re.search(r"[\u2013\u2014][a-z]+-?[a-z]*[ ,.:<]", path.read_text("utf-8")), path


def test_a_call_is_documented(site: dict[Path, Page]) -> None:
    for name in ("lstmcore.LSTM", "lstmcore.Chain", "lstmcore.training.Readout"):
        path = SITE / "reference" / "generated" / f"{name}.html"
        assert f"{name}.__call__" in site[path].anchors
