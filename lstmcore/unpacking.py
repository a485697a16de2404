"""The bytes that a packed file may unpack to: a small file from elsewhere must not fill memory."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Final

try:
    from lzma import LZMAError
except ImportError:  # a Python without it; its zipfile refuses such files by RuntimeError
    _LZMA: tuple[type[Exception], ...] = ()
else:
    _LZMA = (LZMAError,)

#: Errors of zipfile, and of the libraries that it unpacks by, at a damaged file, beside ValueError and OSError.
#: `zip_faults_told` tells its RuntimeError, which may be a mistake of a program anywhere else.
ZIP_FAULTS: Final[tuple[type[Exception], ...]] = (
    zipfile.BadZipFile,
    EOFError,
    struct.error,
    zlib.error,
    *_LZMA,
)

#: An array counts as packed from so many times its bytes in the file on.
RATIO: Final = 200
#: MiB that such arrays of one file may have together.
DEFAULT_MIB: Final = 1024
LIMIT_VARIABLE: Final = "LSTMCORE_MAX_UNPACKED_MIB"
_OBJECT: Final = 256  # bytes of an array beside its numbers


class UnpackBudget:
    """The bytes that are read from one file, beyond what the file holds.

    Zeros get 1,000 times smaller by deflate, in a one-hot table as in a file that is made to fill memory. So an array
    of any ratio may be read, up to a number of bytes: 1 GiB, or the MiB in ``LSTMCORE_MAX_UNPACKED_MIB``. An array
    counts if it is over `RATIO` times its bytes in the file, or if these bytes are those of arrays that were read
    before: a file may give one array many names.

    Parameters
    ----------
    size
        Bytes of the file; an attribute too.

    Raises
    ------
    ValueError
        The variable is no whole number.

    Examples
    --------
    >>> budget = UnpackBudget(3000)
    >>> budget.take("bias", 4000, 3000)
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._unclaimed, self._limit = size, asked_limit()
        self._packed, self._unpacked = 1, 1  # a byte of an inner file has so many in the file itself
        self._counted = [0]  # shared with the budgets of inner files

    def take(self, name: str, unpacked: int, packed: int, what: str = "arrays") -> None:
        """Count an array before it is read.

        Parameters
        ----------
        name
            Of the array, for the message.
        unpacked, packed
            Bytes that reading it takes, and bytes that it has in the file, as the file says.
        what
            The kind of such parts of a file, for the message.

        Raises
        ------
        ValueError
            More bytes than the limit; the message says how to lift it.
        """
        if unpacked + _OBJECT > RATIO * self._claim(packed):
            self.count(name, unpacked, f"{what} over {RATIO} times their size in the file, or named more than once")

    def count(self, name: str, unpacked: int, kind: str) -> None:
        """Count bytes that the file does not hold; `kind` says in the message of what they are.

        Raises
        ------
        ValueError
            As `take`.
        """
        self._counted[0] += unpacked + _OBJECT
        if self._counted[0] > self._limit << 20:
            raise ValueError(
                f"{name}: expected at most {self._limit:,} MiB in {kind}; got {self._counted[0]:,} bytes up to this "
                f"one: if you trust the file, set {LIMIT_VARIABLE} to {-(-self._counted[0] >> 20)} or more"
            )

    def open(self, name: str, unpacked: int, packed: int) -> UnpackBudget:
        """Count a packed file in the file, as `take`, and return its budget.

        Both count to one limit. Bytes of the inner file are worth what they have in the outer one.

        Raises
        ------
        ValueError
            As `take`.
        """
        inner = copy(self)
        inner.size = inner._unclaimed = min(packed, self._unclaimed)
        inner._packed, inner._unpacked = self._packed * packed, self._unpacked * max(unpacked, 1)
        self.take(name, unpacked, packed)
        return inner

    def _claim(self, packed: int) -> int:
        claimed = min(-(-packed * self._packed // self._unpacked), self._unclaimed)
        self._unclaimed -= claimed
        return claimed


@contextmanager
def zip_faults_told() -> Iterator[None]:
    """Turn a RuntimeError into a ValueError; the block has calls of zipfile, or of what reads by it.

    It is that of an encrypted file, of a way to pack that is not known, and of a file of a later version.

    Raises
    ------
    ValueError
        The block raised one.
    """
    try:
        yield
    except RuntimeError as error:
        raise ValueError(f"got an archive that is damaged or cannot be unpacked: {error}") from error


def asked_limit() -> int:
    """Return the MiB in ``LSTMCORE_MAX_UNPACKED_MIB``, 1,024 if it is not set.

    Raises
    ------
    ValueError
        The variable is no whole number.
    """
    asked = os.environ.get(LIMIT_VARIABLE)
    if asked is None:
        return DEFAULT_MIB
    if not asked.isdecimal():
        raise ValueError(f"{LIMIT_VARIABLE}: expected a whole number of MiB; got {asked!r}")
    return int(asked)
