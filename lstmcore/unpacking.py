"""The bytes that a packed file may unpack to: a small file from elsewhere must not fill memory."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from typing import Final

try:
    from lzma import LZMAError
except ImportError:  # a Python without it; its zipfile refuses such files by RuntimeError
    _LZMA: tuple[type[Exception], ...] = ()
else:
    _LZMA = (LZMAError,)

#: Errors of zipfile, and of the libraries that it unpacks by, at a damaged file, beside ValueError and OSError.
#: RuntimeError is that of an encrypted file, and of a way to pack that is not known.
ZIP_FAULTS: Final[tuple[type[Exception], ...]] = (
    zipfile.BadZipFile,
    EOFError,
    RuntimeError,
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
        Bytes of the file.

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
        self._unclaimed, self._counted, self._limit = size, 0, asked_limit()

    def take(self, name: str, unpacked: int, packed: int) -> None:
        """Count an array before it is read.

        Parameters
        ----------
        name
            Of the array, for the message.
        unpacked, packed
            Bytes that reading it takes, and bytes that it has in the file, as the file says.

        Raises
        ------
        ValueError
            More bytes than the limit; the message says how to lift it.
        """
        claimed = min(packed, self._unclaimed)
        self._unclaimed -= claimed
        if unpacked + _OBJECT <= RATIO * claimed:
            return
        self._counted += unpacked + _OBJECT
        if self._counted > self._limit << 20:
            raise ValueError(
                f"{name}: expected at most {self._limit:,} MiB in arrays over {RATIO} times their size in the file, or "
                f"named more than once; got {self._counted:,} bytes up to this one: if you trust the file, set "
                f"{LIMIT_VARIABLE} to {-(-self._counted >> 20)} or more"
            )


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
