"""Sphinx: how the site is made from docs/, SPEC.md and the docstrings; ``nox -s docs`` builds and checks it."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.search import languages
from sphinx.search.en import SearchEnglish

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests" / "helpers"))

project = "lstmcore"
author = "The lstmcore authors"
copyright = "The lstmcore authors, Apache-2.0"
version = release = version_of("lstmcore")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # the site loads nothing from another host
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_click",
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "tutorial", "**/GALLERY_HEADER.rst", "lessons/**/*.md5"]
templates_path = ["_templates"]
default_role = "autolink"  # `name` in a docstring is a link where the site has that name
smartquotes_action = "qe"  # quotes and dots; no dashes, since "--out" is an option of a command
suppress_warnings = ["config.cache"]  # the functions of sphinx_gallery_conf cannot be pickled

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 4

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings give types, shapes and units
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

sphinx_gallery_conf = {
    "examples_dirs": ["tutorial/en", "tutorial/zh"],
    "gallery_dirs": ["lessons/en", "lessons/zh"],
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "min_reported_time": 3600,  # the time of a build says nothing to a reader
    "remove_config_comments": True,
    "abort_on_example_error": True,
    "write_computation_times": False,
}

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = "lstmcore"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "show_toc_level": 2,
    "navigation_depth": 2,
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {"index": [], "compare": [], "start": []}

#: Runs of Chinese characters; a page has them without spaces between words.
_CHINESE = re.compile(r"[\u4e00-\u9fff]+")
#: The end of a line after a Chinese sign, such as a full stop, or between two Chinese characters.
_CHINESE_LINE_END = re.compile(r"(?<=[\u3000-\u303f\uff00-\uffef])\n|(?<=[\u4e00-\u9fff])\n(?=[\u4e00-\u9fff])")
#: Readers look for terms of at most so many characters, such as 记忆单元.
_TERM = 4


class SearchEnglishAndChinese(SearchEnglish):
    """English words with their stems, and every run of up to `_TERM` Chinese characters.

    The script of the search page looks for whole words, and takes a run of Chinese characters for one. So no
    dictionary is needed, neither here nor there.
    """

    lang = "en-zh"
    language_name = SearchEnglish.language_name  # the search page's script looks for a stemmer of that name

    def split(self, input: str) -> list[str]:
        """Return the words of a text."""
        words = super().split(_CHINESE.sub(" ", input))
        for run in _CHINESE.findall(input):
            words += {run[at : at + size] for size in range(1, _TERM + 1) for at in range(len(run) - size + 1)}
        return words

    def word_filter(self, word: str) -> bool:
        """Return whether the index has the word: a single Chinese character is one."""
        return bool(_CHINESE.fullmatch(word)) or super().word_filter(word)


languages[SearchEnglishAndChinese.lang] = SearchEnglishAndChinese
html_search_language = SearchEnglishAndChinese.lang
html_search_scorer = str(HERE / "search_scorer.js")


def is_chinese(name: str) -> bool:
    """Return whether the page of that name is in Chinese."""
    return name.startswith("lessons/zh/")


def join_chinese_lines(app: Sphinx, doctree: nodes.document) -> None:
    """Take the line ends between Chinese characters out: a browser shows each as a space, and Chinese has none."""
    if not is_chinese(app.env.current_document.docname):
        return
    for text in list(doctree.findall(nodes.Text)):
        if not isinstance(text.parent, nodes.FixedTextElement):
            text.parent.replace(text, nodes.Text(_CHINESE_LINE_END.sub("", text)))


def name_language(app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Say that a page is in Chinese, so that browsers take Chinese forms of characters, and readers the voice."""
    if is_chinese(name):
        context["language"] = "zh-CN"


def link_repository(app: Sphinx, doctree: nodes.document) -> None:
    """Turn links to files of the repository that are no page into their names: the site knows no code host."""
    for node in list(doctree.findall(nodes.reference)):
        target: Any = node.get("refuri", "")
        if target.startswith("../") and not target.partition("#")[0].endswith(".html"):
            node.replace_self(nodes.literal("", target.lstrip("./")))


def skip_scikit_learn(*event: Any) -> bool | None:
    """Leave out what the estimators inherit from scikit-learn: its docstrings refer to pages of its own site."""
    member = event[3]
    return True if (getattr(member, "__module__", None) or "").startswith("sklearn.") else None


def setup(app: Sphinx) -> None:
    """Register what this site adds to Sphinx."""
    app.connect("autodoc-skip-member", skip_scikit_learn)
    app.connect("doctree-read", link_repository)
    app.connect("doctree-read", join_chinese_lines)
    app.connect("html-page-context", name_language)
