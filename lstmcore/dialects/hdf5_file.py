"""A file of HDF5 from elsewhere, by h5py: it leads to no other file, and takes a bounded amount of memory."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, BinaryIO, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.unpacking import RATIO, UnpackBudget

Array: TypeAlias = npt.NDArray[Any]

#: Errors of h5py at a damaged file, beside ValueError and OSError: of an object that cannot be opened, of a type that
#: NumPy does not have, of its library.
_FAULTS: Final = (KeyError, TypeError, RuntimeError)
#: How a global heap of HDF5 begins, which has the texts of any length; its bytes follow, as a number of eight bytes.
_HEAP: Final = b"GCOL\x01\0\0\0"
#: Names of layers and arrays that are read of one file; models have some thousands.
_MOST_NAMES: Final = 1 << 18
_PIECE: Final = 1 << 20  # bytes that are searched at a time


class Hdf5File:
    """Groups, arrays and texts of a file; only what is asked for is read, and each thing is of the kind asked for.

    Parameters
    ----------
    file
        An `h5py.File` that is open for reading.
    raw
        The same file as bytes, open as long as this object is used.
    budget
        What its arrays and texts may take of memory.

    Raises
    ------
    ValueError
        A link to another file, or a damaged file; the methods raise it too.
    """

    def __init__(self, file: Any, raw: BinaryIO, budget: UnpackBudget) -> None:
        self.root, self._raw, self._budget = file, raw, budget
        self._named = self._text_bytes = 0  # of the lists of names that were read
        with _faults_told("links"):
            foreign = _foreign_link(file["/"])
        if foreign is not None:
            raise ValueError(f"{foreign}: expected data in the file itself; got a link to another file")

    def group(self, parent: Any, path: str) -> Any:
        """Return a group below `parent`."""
        import h5py

        name = _name(parent, path)
        with _faults_told(name):
            found = parent.get(path)
        if not isinstance(found, h5py.Group):
            raise ValueError(f"{name}: expected a group; got {_kind(found)}")
        return found

    def names(self, group: Any) -> list[str]:
        """Return the names in a group."""
        name = _name(group)
        with _faults_told(name):
            number = len(group)
        self._count_names(name, number)
        with _faults_told(name):
            found = list(group)
        return [_text(name, each) for each in found]

    def array(self, group: Any, key: str) -> Array:
        """Return the floats of a data set; each call counts, since a file may give one data set many names."""
        import h5py

        name = _name(group, key)
        with _faults_told(name):
            found = group.get(key)
            shape = found.shape if isinstance(found, h5py.Dataset) else None
        if shape is None:  # a data set of no shape is one without numbers
            raise ValueError(f"{name}: expected an array; got {_kind(found)}")
        with _faults_told(name):
            dtype, foreign = found.dtype, bool(found.external) or found.is_virtual
            piece = math.prod(found.chunks or ()) * dtype.itemsize  # is unpacked whole
            unpacked, packed = max(found.nbytes, piece), found.id.get_storage_size()
        if dtype.hasobject:
            raise ValueError(f"{name}: expected numbers; got texts, references or rows of unequal length")
        if foreign:
            raise ValueError(f"{name}: expected numbers in the file itself; got those of another file")
        if dtype.kind != "f" or not dtype.isnative:
            raise ValueError(f"{name}: expected floating-point numbers in this machine's byte order; got {dtype.str}")
        self._budget.take(name, unpacked, packed)
        with _faults_told(name):
            return np.asarray(found)

    def text(self, holder: Any, key: str) -> str | None:
        """Return an attribute that is one text, or None if `holder` has no such attribute."""
        name = f"{_name(holder)}: {key}"
        with _faults_told(name):
            if key not in holder.attrs:
                return None
            attribute = holder.attrs.get_id(key)
            shape, dtype, are_texts = attribute.shape, attribute.dtype, _has_texts(attribute)
        if shape != () or not are_texts:
            raise ValueError(f"{name}: expected one text; got {dtype} {shape}")
        if dtype.hasobject:
            _ = self._longest_text  # refuses damaged heaps
        with _faults_told(name):
            value = holder.attrs[key]
        return _text(name, value)

    def has_texts(self, holder: Any, key: str) -> bool:
        """Return whether `texts` finds the attribute."""
        with _faults_told(f"{_name(holder)}: {key}"):
            return key in holder.attrs or f"{key}0" in holder.attrs

    def texts(self, holder: Any, key: str) -> list[str]:
        """Return an attribute that is a list of texts; Keras divides one over 64 KB into key0, key1 and so on."""
        name, found, number = f"{_name(holder)}: {key}", list[Any](), 0
        if not self.has_texts(holder, key):
            raise ValueError(f"{name}: expected this attribute; got none")
        with _faults_told(name):
            whole = key in holder.attrs
        part = key if whole else f"{key}0"
        while part:
            found += self._values(name, holder, part)
            number += 1
            with _faults_told(name):
                part = f"{key}{number}" if not whole and f"{key}{number}" in holder.attrs else ""
        return [_text(name, value) for value in found]

    @cached_property
    def _longest_text(self) -> int:
        """The bytes of the largest heap, which no text exceeds; HDF5 itself tells the size of none."""
        heaps, before, at = list[int](), b"", 0
        self._raw.seek(0)
        while piece := self._raw.read(_PIECE):
            found, start = before + piece, at - len(before)
            heaps += [start + match.start() for match in re.finditer(_HEAP, found)]
            before, at = found[1 - len(_HEAP) :], at + len(piece)
        return min(max((self._checked_heap(heap, at) for heap in heaps), default=0), at)

    def _checked_heap(self, at: int, file_size: int) -> int:
        """Return the bytes of a heap, unless its texts do not fill it: HDF5 looks for the next one forever."""
        size = self._number(at + 8)
        place, end = at + 16, min(at + size, file_size)
        while place + 16 <= end:
            length, free = self._number(place + 8), self._number(place) & 0xFFFF == 0
            place += length if free else 16 + -(-length // 8) * 8
            if place > end or (free and length < 16):
                raise ValueError(f"expected texts that fill their heap at byte {at}; got a damaged one")
        return size

    def _number(self, at: int) -> int:
        self._raw.seek(at)
        return int.from_bytes(self._raw.read(8), "little")

    def _values(self, name: str, holder: Any, key: str) -> list[Any]:
        with _faults_told(name):
            attribute = holder.attrs.get_id(key)
            shape, dtype, are_texts = attribute.shape, attribute.dtype, _has_texts(attribute)
        if shape is None or 0 in shape:  # Keras writes no names as no numbers
            return []
        if not are_texts:
            raise ValueError(f"{name}: expected texts; got {dtype}")
        number = math.prod(shape)
        self._count_names(name, number)
        longest = self._longest_text if dtype.hasobject else dtype.itemsize
        if self._text_bytes + number * longest > RATIO * self._budget.size:  # all may be one long text of the file
            kind = f"lists of texts, which may be {RATIO} times as long as the file or longer"
            self._budget.count(name, number * longest, kind)
        with _faults_told(name):
            values: list[Any] = np.ravel(holder.attrs[key]).tolist()
        self._text_bytes += sum(len(value) for value in values if isinstance(value, str | bytes))
        return values

    def _count_names(self, name: str, number: int) -> None:
        """Raise ValueError for too many names; a file may give one list to any number of layers."""
        self._named += number
        if self._named > _MOST_NAMES:
            raise ValueError(f"{name}: expected at most {_MOST_NAMES:,} names in one file; got {self._named:,}")


@contextmanager
def open_hdf5(source: Any) -> Iterator[Any]:
    """Open a file of HDF5, a path or a stream, as an `h5py.File`; a damaged one is a ValueError or an OSError."""
    import h5py

    with _faults_told("the file"):
        file = h5py.File(source, "r")
    try:
        yield file
    finally:
        with _faults_told("the file"):
            file.close()


@contextmanager
def _faults_told(name: str) -> Iterator[None]:
    """Turn errors of h5py into a ValueError; the block has calls of h5py alone, whose mistakes are not ours."""
    try:
        yield
    except _FAULTS as error:
        raise ValueError(f"{name}: expected data of HDF5; h5py cannot read it: {error}") from error


def _foreign_link(root: Any) -> str | None:
    """Return the place of a link to another file, None if no group has one; no link is followed to find out."""
    import h5py

    groups, known = [root.id], {h5py.h5o.get_info(root.id).addr}
    while groups:
        group = groups.pop()
        for name in group:
            link = group.links.get_info(name).type
            if link == h5py.h5l.TYPE_SOFT:  # leads to what hard links reach, or to a link that is found here
                continue
            if link != h5py.h5l.TYPE_HARD:
                return _place(group, name)
            found = h5py.h5o.get_info(group, name)
            if found.type == h5py.h5o.TYPE_GROUP and found.addr not in known:  # a group may hold itself
                known.add(found.addr)
                groups.append(h5py.h5g.open(group, name))
    return None


def _has_texts(attribute: Any) -> bool:
    """Return whether an attribute has texts; h5py 3.16 crashes at some lists of other things that are no texts."""
    import h5py

    return h5py.check_string_dtype(attribute.dtype) is not None


def _name(parent: Any, path: str = "") -> str:
    own = parent.name or "/"
    own = own.decode(errors="replace") if isinstance(own, bytes) else own  # h5py decodes what is UTF-8
    return f"{own.rstrip('/')}/{path}" if path else own


def _place(group: Any, name: bytes) -> str:
    """Return the path of a link, of h5py's own kind of groups."""
    import h5py

    path = (h5py.h5i.get_name(group) or b"").rstrip(b"/") + b"/" + name
    return path.decode(errors="replace")


def _kind(found: Any) -> str:
    return (
        "nothing"
        if found is None
        else {"Group": "a group", "Dataset": "a data set"}.get(type(found).__name__, "a type")
    )


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str | bytes):
        raise ValueError(f"{name}: expected a text; got {type(value).__name__}")
    return value.decode() if isinstance(value, bytes) else value
