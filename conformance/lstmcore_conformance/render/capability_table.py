"""The table of the names that a backend can declare.

``python -m lstmcore_conformance.render.capability_table`` prints the one in docs/reference/capabilities.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from lstmcore.config import ACTIVATIONS, FEATURES, SWITCHES
from lstmcore.declaration import DERIVATIVES
from lstmcore.domains import Switch
from lstmcore.precision import PRECISIONS
from lstmcore.stored_weights import WEIGHT_FEATURES

#: Name -> what asks for it, and its meaning, for names that no switch has.
_CALLS: Final = {
    "lengths": ("a call with `lengths`", "Rows that end before T."),
    "masks": ("a call with `masks`", "Random masks; without them zoneout and dropout are those of inference."),
    "backward": ("`record=True`, `backward`", "A tape, and the gradients from it."),
    "jvp": ("`jvp`", "Derivatives along tangents."),
}


def table() -> str:
    """Markdown: field of `Capabilities`, name, what asks for it, meaning."""
    lines = ["| field | name | asked for by | meaning |", "|---|---|---|---|"]
    fields = {"precisions": _precisions(), "features": _features(), "derivatives": _calls(DERIVATIVES)}
    lines += [
        f"| `{field}` | `{name}` | {request} | {meaning} |"
        for field, rows in fields.items()
        for name, request, meaning in rows
    ]
    return "\n".join(lines)


_Row = tuple[str, str, str]


def _precisions() -> Iterator[_Row]:
    for name, policy in PRECISIONS.items():
        products = "" if policy.operands == "as they are" else " Operands of matrix products have 10 bits."
        meaning = f"x, y, h and parameters in {policy.storage}; c, masks and sums in {policy.compute}.{products}"
        yield name, f'`dtype="{name}"`', meaning


def _features() -> Iterator[_Row]:
    """Yield the features of switches in the order of the switches, then those of calls and of stored weights."""
    rows: dict[str, _Row] = {}
    for switch in (switch for switch in SWITCHES.values() if switch.domain.kind != "function"):
        for name, value in _names(switch):
            request = f"{switch.name}={value!r}".replace("'", '"')
            rows[name] = (name, f"`{request}`", switch.summary)
    for function in ACTIVATIONS:
        meaning = "As `gate_activation`, `cell_activation` or `hidden_activation`."
        rows[f"activation:{function}"] = (f"activation:{function}", f'`"{function}"`', meaning)
    yield from rows.values()
    yield from _calls(FEATURES - set(rows))
    for name in sorted(WEIGHT_FEATURES):
        form = name.partition(":")[2]
        yield name, f'`weights="{form}"`', f"Matrices in {form} (SPEC.md, section 8)."


def _names(switch: Switch) -> Iterator[tuple[str, Any]]:
    """Yield the features that a switch asks for, each with a value that does so."""
    for value in (value for value in switch.sample if switch.feature):
        yield str(switch.feature).format(value), value


def _calls(names: frozenset[str]) -> Iterator[_Row]:
    return ((name, *_CALLS[name]) for name in sorted(names))


if __name__ == "__main__":
    print(table())
