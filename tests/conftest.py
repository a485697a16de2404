"""Fixtures that several modules use."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from lstmcore import plugin_calls, registry
from plugins import Install, good

# The same examples in every run, however long each takes.
settings.register_profile(
    "same",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("same")

plugin_calls.SLOW_S = 1e6  # no test depends on how long a backend takes to import


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a plug-in of a name, with a code or a reason why it cannot run, and returns its module."""
    monkeypatch.delenv(registry.BACKEND_VARIABLE, raising=False)
    monkeypatch.delenv(registry.PLUGINS_VARIABLE, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))

    def add(name: str, code: str | None = None, *, module: str = "", reason: str | None = None) -> str:
        module = module or f"plugin_{name}_{tmp_path.name}".replace("-", "_")
        folder = tmp_path / f"{module}-1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
        (folder / "entry_points.txt").write_text(f"[lstmcore.backends]\n{name} = {module}\n")
        (tmp_path / f"{module}.py").write_text(good(name, reason) if code is None else code)
        return module

    return add
