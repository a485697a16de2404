"""What a newcomer meets: versions that agree, and forms that ask for commands that are there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from lstmcore.cli import COMMANDS

ROOT = Path(__file__).parents[2]


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_pre_commit_has_the_linter_of_the_session() -> None:
    (wanted,) = re.findall(r'^RUFF = "(.+)"', read("noxfile.py"), re.MULTILINE)
    assert set(re.findall(r"ruff==[\d.]+", read(".pre-commit-config.yaml"))) == {wanted}


def test_the_citation_has_the_version_of_the_package() -> None:
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    assert re.findall(r"^version: (.+)$", read("CITATION.cff"), re.MULTILINE) == [version]
    assert f"## {version}" in read("CHANGELOG.md")


def test_forms_ask_for_commands_that_are_there() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 3
    for form in forms:
        named = re.findall(r"`lstmcore (\w+)", form.read_text("utf-8"))
        assert named, form.name
        assert set(named) <= set(COMMANDS)


def test_the_workflow_runs_what_is_there() -> None:
    workflow = read(".github/workflows/ci.yml")
    assert "bash .ci/run" in workflow
    assert workflow.startswith("# Not run yet")
    (session,) = re.findall(r"nox -s (\w+)", workflow)
    assert f"def {session}(" in read("noxfile.py")


def test_commands_of_contributing_are_there() -> None:
    text, noxfile = read("CONTRIBUTING.md"), read("noxfile.py")
    assert all(f"def {name}(" in noxfile for name in re.findall(r"nox -s (\w+)", text))
    assert set(re.findall(r"`lstmcore (\w+)", text)) <= set(COMMANDS)
    links = [target for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    assert links
    assert [target for target in links if not (ROOT / target).exists()] == []
