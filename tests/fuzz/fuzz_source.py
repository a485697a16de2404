"""Decisions from bytes: an input is a byte string, so that it can be kept, shortened, and changed by a fuzzer."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import numpy as np

T = TypeVar("T")

#: Values that code for numbers, names and arrays often forgets.
ODD: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, 1, -1, 2, 3, 5, 2**31, 2**63, 2**64, -(2**63), 10**30),
    *(0.0, -0.0, 0.5, 1.0, -1.5, 1e-320, 1e308, float("inf"), float("nan"), 1j, 0.5 + 0j),
    *("", "x", "1", "tanh", "elu(0.5)", "elu(alpha=nan)", "none", "nan", "\x00", "\udc80", "é" * 300),
    *(b"", b"x", (), [], {}, [1], {"a": 1}, {1: 2}, (1, 2), object(), int, len),
    *(
        np.float32(0.5),
        np.int8(-3),
        np.bool_(True),
        np.float64("nan"),
        np.array(1.0),
        np.array([1, 2]),
        np.zeros((0, 3)),
    ),
    *(np.array(["a"]), np.array([None]), np.ma.masked_array([1.0, 2.0], [True, False]), np.zeros(3, complex)),
)
DTYPES: Final = ("float32", "float64", "float16", "int64", "uint8", "bool", "complex64", ">f4", "object", "U3")
NUMBERS: Final = (0.0, 1.0, -0.5, 1e-45, 1e300, float("inf"), float("nan"))


class Source:
    """A reader of decisions. Past the end of the bytes every decision is the first of its choices."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def below(self, count: int) -> int:
        """Return a number from 0 to ``count - 1``."""
        size = 1 if count <= 256 else 4
        piece = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(piece, "little") % count

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of `choices`."""
        return choices[self.below(len(choices))]

    def often(self, value: T, others: Sequence[Any], of: int = 4) -> T | Any:
        """Return `value`, and one of `others` each `of`-th time."""
        return self.pick(others) if self.below(of) == 1 else value

    def rest(self, limit: int) -> bytes:
        """Return at most `limit` bytes."""
        piece = self._data[self._at : self._at + limit]
        self._at += limit
        return piece

    def array(self, shape: Sequence[int], dtype: str = "float32") -> Any:
        """Return an array, mostly of this shape and dtype, in one of several layouts."""
        shape = tuple(self.often(size, (0, 1, size + 1)) if self.below(6) == 1 else size for size in shape)
        if self.below(12) == 1:
            shape = self.pick(((), shape[1:], (*shape, 2), (1, *shape)))
        dtype = self.often(dtype, DTYPES, 12)
        random = np.random.default_rng(self.below(2**31))
        if dtype in ("object", "U3"):
            return np.full(shape, "a", dtype)
        values = np.asarray(random.standard_normal(shape) * 2).astype(dtype)
        if values.size and self.below(12) == 1 and values.dtype.kind == "f":
            values.reshape(-1)[self.below(values.size)] = self.pick(NUMBERS)
        form = self.below(8)
        if form == 1:
            return np.asfortranarray(values)
        if form == 2 and values.ndim:
            return np.repeat(values, 2, axis=-1)[..., ::2]
        if form == 3 and values.ndim:
            return values[::-1]
        if form == 4:
            values.flags.writeable = False
        if form == 5:
            return np.broadcast_to(values.reshape(-1)[:1].reshape((1,) * values.ndim), shape) if values.size else values
        return self.often(values, (values.tolist(), np.ma.masked_array(values), *ODD), 20)

    def changed(self, sample: bytes) -> bytes:
        """Return `sample` with some bytes changed, removed, doubled or put in."""
        content = bytearray(sample)
        for _ in range(1 + self.below(4)):
            at, kind = self.below(len(content) + 1), self.below(6)
            if kind == 0:
                content[at:at] = self.rest(1 + self.below(8))
            elif kind == 1:
                del content[at : at + 1 + self.below(64)]
            elif kind == 2:
                del content[at:]
            elif kind == 3 and at < len(content):
                content[at] ^= 1 << self.below(8)
            elif kind == 4:
                content[at:at] = content[at : at + 1 + self.below(64)] * (1 + self.below(3))
            else:
                content[at : at + 1] = self.pick(TOKENS)
        return bytes(content)


#: What parsers of text give a meaning.
TOKENS: Final = (
    *(b"\x00", b"\xff", b"\n", b"\r", b'"', b",", b";", b"{", b"}", b"[", b"]", b":", b"-1", b"0", b"1e999", b"NaN"),
    *(
        b"null",
        b"true",
        b"9" * 25,
        b"\xef\xbb\xbf",
        b"[" * 2000,
        b"\\ud800",
        b"2024-13-45",
        b"Infinity",
        b"=",
        b"#",
        b"'''",
    ),
)


def random_bytes(seed: int, limit: int = 256) -> bytes:
    """Return the bytes of a seed; short ones are as frequent as long ones."""
    random = np.random.default_rng(seed)
    return random.bytes(int(random.integers(1, limit)))


def scratch(name: str) -> str:
    """Return a path for the files of an input, in the folder of this process."""
    return os.path.join(os.environ["LSTMCORE_FUZZ_FOLDER"], name)


#: Errors of a wrong argument or file. OverflowError, KeyError, AttributeError and so on are faults.
REFUSALS: Final = (ValueError, TypeError, FileNotFoundError, MemoryError)


def refused(call: Callable[[], Any]) -> Any:
    """Return what `call` returns, None if it refuses its arguments."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    except REFUSALS:
        return None


def refused_by_name(call: Callable[[], Any], name: str, errors: tuple[type[Exception], ...] = (ValueError,)) -> Any:
    """Return what `call` returns, None if it refuses a file by an error that has the file's name in its text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    except errors as error:
        if name not in str(error):
            raise AssertionError(f"the file is not named: {error!r}") from error
        return None
