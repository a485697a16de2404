"""A new switch: two edits of the core, and everything that lists switches has it."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import lstmcore
from lstmcore.config import SHARED_SWITCHES, SWITCHES

_FIELD: Final = '    toy: float = switch(0.0, RATE, "A toy.", feature="toy", sample=(0.5,))\n'

_CODE: Final = """
import json
from click.testing import CliRunner
from lstmcore import LSTM, LSTMConfig, backends
from lstmcore.backend import Capabilities
from lstmcore.cli import main
from lstmcore.config import FEATURES
from lstmcore.precision import PRECISIONS
from lstmcore_conformance.cases.switches import FACTORS, SWITCHES, config_of, covering
from lstmcore_cupy.program_source import numbers, program
from lstmcore_numpy.kernel import NumpyBackend

toy = LSTMConfig(input_size=2, hidden_size=3, toy=0.25)
plain = LSTMConfig(input_size=2, hidden_size=3)
try:
    LSTMConfig(input_size=2, hidden_size=3, toy=2)
except ValueError as error:
    message = str(error)


class Without(NumpyBackend):
    name = "without"

    def capabilities(self):
        return Capabilities("cpu", frozenset(PRECISIONS), FEATURES - {"toy"}, reasons={"toy": "no toys here"})


print(json.dumps({
    "features": sorted(toy.features), "plain": sorted(plain.features), "declarable": "toy" in FEATURES,
    "message": message, "round trip": LSTMConfig.from_dict(toy.to_dict()) == toy,
    "refusal": Without().refusal(toy, PRECISIONS["float32"]),
    "layers": [config.toy for config in LSTM(2, 3, 2, bidirectional=True, toy=0.25, backend="numpy").stack.configs],
    "help": CliRunner().invoke(main, ["train", "--help"]).output,
    "macro": program(toy, PRECISIONS["float32"]).count("#define HAS_TOY 1"),
    "number": numbers(toy)["toy"],
    "alone": SWITCHES["toy"], "case": config_of(SWITCHES["toy"]).toy, "factor": FACTORS["toy"],
    "met": sum(row.get("toy") == 0.5 for row in covering(NumpyBackend().capabilities())),
    "avoided": sum("toy" in row for row in covering(Without().capabilities())),
}))
"""


def _edit(path: Path, anchor: str, line: str) -> None:
    text = path.read_text()
    assert text.count(anchor) == 1, anchor
    path.write_text(text.replace(anchor, line + anchor))


def test_a_new_switch_is_known_everywhere(tmp_path: Path) -> None:
    """Features, errors, files, options, CUDA macros and cases follow from the field and the argument of `LSTM`."""
    package = tmp_path / "lstmcore"
    shutil.copytree(Path(lstmcore.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    _edit(package / "config.py", "    peephole: bool = switch(", _FIELD)
    _edit(package / "lstm.py", "        peephole: bool = False,\n", "        toy: float = 0.0,\n")
    done = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["features"], found["plain"], found["declarable"]) == (["toy"], [], True)
    assert found["message"] == "toy: expected a rate in [0, 1]; got 2"
    assert found["round trip"]
    assert found["refusal"] == "toy: no toys here"
    assert found["layers"] == [0.25] * 4
    assert "--toy FLOAT RANGE" in found["help"] and "A toy." in found["help"]
    assert (found["macro"], found["number"]) == (1, 0.25)
    assert (found["alone"], found["case"], found["factor"]) == ({"toy": 0.5}, 0.5, [{}, {"toy": 0.5}])
    assert found["met"] > 5
    assert found["avoided"] == 0


def test_lstm_takes_every_shared_switch_with_its_default() -> None:
    parameters = inspect.signature(lstmcore.LSTM).parameters
    for name in SHARED_SWITCHES:
        assert parameters[name].default == SWITCHES[name].default, name
