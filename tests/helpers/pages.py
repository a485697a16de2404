"""Pages as tests read them: by their text, and in a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path


class Text(HTMLParser):
    """The text of a page, its tags with their attributes, and whether all are closed."""

    VOID = frozenset({"meta", "br", "img", "line", "circle", "polyline"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


#: Added to a copy of the page: it writes to the title whether something is wider than the window, and the smallest
#: size of a letter in a drawing, in pixels.
_PROBE = """<script>
const letters = [...document.querySelectorAll("svg text")].map(text => {
  const drawing = text.ownerSVGElement;
  return parseFloat(getComputedStyle(text).fontSize) * drawing.clientWidth / drawing.viewBox.baseVal.width;
});
const fits = document.documentElement.scrollWidth > window.innerWidth ? "TOO WIDE" : "FITS";
document.title = `${fits} ${window.innerWidth} ${Math.min(...letters)}`;
parent.postMessage(document.title, "*");
</script>"""


@dataclass(frozen=True)
class Seen:
    """A page as a browser shows it.

    `fits` is False if it is wider than the window; `letters` is the size of the smallest letter in a drawing, in pixels
    (infinite without drawings); `complaints` is True if the console has messages.
    """

    fits: bool
    letters: float
    text: str
    complaints: bool


def in_browser(html: str, folder: Path, width: int, scheme: str) -> Seen:
    """Open the page in headless Chromium, in a frame of that width, light or dark."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert browser is not None, "chromium: expected it on the path; install it with: apt-get install chromium"
    copy = folder / "page.html"
    copy.write_text(html.replace("</body>", f"{_PROBE}</body>"), "utf-8")
    frame = folder / "frame.html"  # a window has at least 500 pixels, a frame any number
    frame.write_text(
        "<title></title><script>addEventListener('message', e => { document.title = e.data })</script>"
        f'<iframe src="page.html" style="border:0;width:{width}px;height:800px"></iframe>'
    )
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'user'}", *dark]
    options += ["--enable-logging=stderr", "--window-size=1400,900", "--virtual-time-budget=5000", "--dump-dom"]
    framed, done = (
        subprocess.run([browser, *options, file.as_uri()], capture_output=True, text=True, check=True, timeout=120)
        for file in (frame, copy)
    )
    title = re.search(r"<title>(.*) (\d+) (\S+)</title>", framed.stdout)
    assert title is not None, f"expected the page to write its width to the title; got {framed.stdout}"
    return Seen(
        title.group(1, 2) == ("FITS", str(width)),
        float(title[3]),
        Text(done.stdout[done.stdout.index("<html") :]).text,
        "CONSOLE" in framed.stderr + done.stderr,
    )
