"""The table of all checks.

``python -m lstmcore_conformance.render.check_table`` prints the one in docs/conformance.md.
"""

from __future__ import annotations

from lstmcore_conformance.suite.check import all_checks


def table() -> str:
    """Markdown: check, section of SPEC.md, what it needs, claim."""
    lines = ["| check | section | needs | claim |", "|---|---|---|---|"]
    lines += [
        f"| `{check.id}` | {check.section} | {', '.join(check.needs) or '-'} | {check.claim} |"
        for check in all_checks()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
