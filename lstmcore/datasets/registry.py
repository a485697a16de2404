"""The data sets that ship with the package, by name."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import Final, Literal, overload

import numpy as np

from lstmcore.datasets.csvfile import read_csv
from lstmcore.datasets.sequences import Classification, Sequences
from lstmcore.datasets.series import Series
from lstmcore.suggestions import did_you_mean

_DATA: Final = files("lstmcore.datasets") / "data"
_NAMES: Final = ("japanese-vowels", "co2")


def names() -> tuple[str, ...]:
    """Return the names that `load` knows.

    Examples
    --------
    >>> names()
    ('japanese-vowels', 'co2')
    """
    return _NAMES


@overload
def load(name: Literal["japanese-vowels"]) -> Classification: ...
@overload
def load(name: Literal["co2"]) -> Series: ...
@overload
def load(name: str) -> Classification | Series: ...
def load(name: str) -> Classification | Series:
    """Load a data set that ships with the package.

    Parameters
    ----------
    name
        ``"japanese-vowels"``: 270 training and 370 test utterances of 7 to 29 frames of 12 coefficients, by nine
        speakers, which are the classes. ``"co2"``: weekly CO2 at Mauna Loa in ppm, 1958 to 2001, 2,284 rows of which
        59 are gaps (NaN); `Series.filled` treats them.

    Raises
    ------
    ValueError
        No such data set.

    Examples
    --------
    >>> data = load("japanese-vowels")
    >>> len(data.train), len(data.test), data.input_size, len(data.classes)
    (270, 370, 12, 9)
    >>> series = load("co2")
    >>> len(series), int(series.gaps.sum())
    (2284, 59)
    """
    if name == "japanese-vowels":
        return _japanese_vowels()
    if name == "co2":
        with as_file(_DATA / "mauna_loa_co2_weekly.csv") as path:
            return read_csv(path, "co2", name="co2")
    raise ValueError(f"data set: expected one of {', '.join(_NAMES)}; got {name!r}{did_you_mean(str(name), _NAMES)}")


def _japanese_vowels() -> Classification:
    with as_file(_DATA / "japanese_vowels.npz") as path, np.load(path, allow_pickle=False) as arrays:
        values, lengths, speaker = arrays["values"], arrays["lengths"], arrays["speaker"]
        is_train = arrays["is_train"]
    sequences = Sequences(tuple(np.split(values, np.cumsum(lengths)[:-1])), speaker.astype(np.int64) - 1)
    return Classification(
        name="japanese-vowels",
        train=sequences.subset(np.flatnonzero(is_train)),
        test=sequences.subset(np.flatnonzero(~is_train)),
        classes=tuple(f"speaker {number}" for number in range(1, 10)),
    )
