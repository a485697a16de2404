"""Data to train on: two real data sets that ship with the package, and series from a CSV file of one's own.

``data/SOURCES.md`` gives the sources and licences of what ships.
"""

from __future__ import annotations

from lstmcore.datasets.csvfile import Layout, read_columns, read_csv, read_header, read_panel
from lstmcore.datasets.frame_windows import FrameWindows, windows
from lstmcore.datasets.labelled import LabelLayout, Labelled, read_archive, read_labelled
from lstmcore.datasets.registry import load, names
from lstmcore.datasets.sequences import Classification, Sequences
from lstmcore.datasets.series import Fill, Series
from lstmcore.datasets.series_windows import Windows

__all__ = [
    "Classification",
    "Fill",
    "FrameWindows",
    "LabelLayout",
    "Labelled",
    "Layout",
    "Sequences",
    "Series",
    "Windows",
    "load",
    "names",
    "read_archive",
    "read_columns",
    "read_csv",
    "read_header",
    "read_labelled",
    "read_panel",
    "windows",
]
