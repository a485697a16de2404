"""Write the public index of the golden vectors before setuptools collects files; pyproject.toml has all else."""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import setup

_INDEX = Path(__file__).parent / "conformance" / "lstmcore_conformance" / "vectors" / "index.py"

runpy.run_path(str(_INDEX))["write_public"]()
setup()
