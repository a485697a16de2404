"""``lstmcore conform``: the conformance suite on a backend."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import click
from rich.console import Console

from lstmcore.cli._command import Command
from lstmcore.cli._console import progress
from lstmcore.cli._data import check_files
from lstmcore.precision import PRECISIONS


@click.command("conform", cls=Command)
@click.argument("name")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(tuple(PRECISIONS)),
    help="Precision to test; can be repeated  [default: all that the backend declares].",
)
@click.option(
    "-k",
    "select",
    metavar="EXPR",
    help="Run only checks whose id matches, as in pytest: words with and, or, not, brackets.",
)
@click.option(
    "--profile",
    type=click.Choice(("smoke", "quick", "full")),
    default="quick",
    show_default=True,
    help="smoke runs a few cases of each check, in seconds; full also runs those that take long.",
)
@click.option("--seed", type=click.IntRange(min=0), default=None, help="Seed of the random cases  [default: 0].")
@click.option(
    "--max-examples",
    type=click.IntRange(min=1),
    default=None,
    help="Random cases of each check  [default: 30; 3 in smoke].",
)
@click.option(
    "--max-work",
    type=click.IntRange(min=1),
    default=None,
    help="Leave out cases with more multiply-adds; the result is then at best partial  [default: no limit].",
)
@click.option(
    "--expected-failures",
    "expected_path",
    metavar="FILE",
    help='TOML file with lines "check or item id" = "reason"; a listed check that passes is a failure.',
)
@click.option("--since", "since_path", metavar="REPORT", help="Show what changed since a report in JSON.")
@click.option(
    "--save-failure",
    "failures",
    metavar="FOLDER",
    help="Write the arrays of each failing call, and a script that makes the call again without the suite; a crash "
    "or a hang leaves none.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds after which a case counts as one that hangs.",
)
@click.option("--in-process", is_flag=True, help="Run in this process, for a debugger: a crash then ends the run.")
@click.option("--json", "path", metavar="FILE", help="Write the report as JSON, or - for standard output.")
@click.option("--junit", "junit_path", metavar="FILE", help="Write the report as JUnit XML.")
@click.option("--html", "html_path", metavar="FILE", help="Write the report as one page that needs no network.")
@click.option(
    "--badge", "badge_path", metavar="FILE", help="Write a badge (SVG), and one for shields.io as FILE.shields.json."
)
def conform(  # long: one line for each option  # noqa: PLR0913  (one for each option)
    name: str,
    precisions: tuple[str, ...],
    select: str | None,
    profile: Literal["smoke", "quick", "full"],
    seed: int | None,
    max_examples: int | None,
    max_work: int | None,
    expected_path: str | None,
    since_path: str | None,
    failures: str | None,
    timeout: float,
    in_process: bool,
    path: str | None,
    junit_path: str | None,
    html_path: str | None,
    badge_path: str | None,
) -> None:
    """Check the backend NAME against the specification.

    NAME is a backend that 'lstmcore backends' lists, or MODULE:ATTRIBUTE, such as mykernel:MyBackend. The cases run in
    a child process: one that crashes or hangs is named, and the run goes on.

    Each check reports its largest error as a fraction of its budget, and passes up to 1. The exit code is 0 if the
    backend conforms, 1 if a check failed, and 2 if the backend is missing or the command is wrong.

    \b
    Examples:
      lstmcore conform numpy
      lstmcore conform numpy --profile smoke
      lstmcore conform numpy --precision float32 --json report.json
      lstmcore conform numpy -k 'backward and peephole'
      lstmcore conform numpy --profile full --html report.html
      lstmcore conform mykernel:MyBackend --save-failure failures
      lstmcore conform numpy --since report.json
    """  # noqa: D301  (click keeps the lines below its mark)
    from lstmcore.files import write_atomically
    from lstmcore_conformance.render.badge import badge, endpoint
    from lstmcore_conformance.render.junit import junit
    from lstmcore_conformance.render.report_page import page
    from lstmcore_conformance.render.templating import require_jinja2
    from lstmcore_conformance.suite.backend_under_test import Draws
    from lstmcore_conformance.suite.changes import changes, read_report
    from lstmcore_conformance.suite.expected_failures import load
    from lstmcore_conformance.suite.isolated import Job, run_job

    json_path = None if path == "-" else path
    endpoint_path = None if badge_path is None else str(Path(badge_path).with_suffix(".shields.json"))
    outputs = {"--badge": badge_path, "the JSON of --badge for shields.io": endpoint_path}
    check_files({**outputs, "--json": json_path, "--junit": junit_path, "--html": html_path}, {})
    if html_path is not None or badge_path is not None:
        require_jinja2()
    expected = None if expected_path is None else load(expected_path)
    before = None if since_path is None else read_report(since_path)
    draws = Draws.of(profile, seed, max_examples)
    job = Job(name, precisions or None, select, profile, draws, max_work, failures)
    with progress(f"conform {name}", seconds=10) as tell:
        report = run_job(
            job,
            timeout=None if in_process else timeout,
            expected_failures=expected,
            progress=lambda done, total, item: tell(done, total, item.partition("[")[0]),
        )
    written = ((junit, junit_path), (page, html_path), (badge, badge_path), (endpoint, endpoint_path))
    for text, file in written:
        if file is not None:
            write_atomically(file, text(report).encode())
    if failures is not None and report.bad:
        click.echo(f"failing calls, and scripts that make them again, are in {failures}", err=True)
    if path == "-":
        click.echo(report.to_json(), nl=False)
    else:
        report.show(Console())
        if before is not None:
            click.echo(f"\nSince {since_path}:\n" + "\n".join(f"  {line}" for line in changes(before, report).lines()))
    if json_path is not None:
        report.write_json(json_path)
    if not report.conforms:
        sys.exit(1)
