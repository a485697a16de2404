"""Weights from live modules and files of PyTorch, and back: the same numbers give the same outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore.lstm import LSTM

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

SHAPES: tuple[dict[str, Any], ...] = (
    {},
    {"num_layers": 2, "dropout": 0.25},
    {"bidirectional": True, "bias": False, "batch_first": True},
    {"num_layers": 3, "bidirectional": True, "proj_size": 2},
)


def module(dtype: Any = torch.float64, **arguments: Any) -> Any:
    torch.manual_seed(1)
    return torch.nn.LSTM(3, 5, **arguments).to(dtype).eval()


def compare(found: LSTM, theirs: Any, dtype: Any, tolerance: float) -> None:
    x = np.random.default_rng(0).standard_normal((6, 4, 3))
    with torch.no_grad():
        y, (h, c) = theirs(torch.from_numpy(x).to(dtype))
    mine, state = found(x.astype(found.precision.storage))
    for one, two in ((mine, y), (state.h, h), (state.c, c)):
        np.testing.assert_allclose(one, two.double().numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("arguments", SHAPES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_modules_dictionaries_and_files(tmp_path: Path, arguments: dict[str, Any], dtype: str) -> None:
    kind = getattr(torch, dtype)
    theirs = module(kind, **arguments)
    tolerance = 1e-12 if dtype == "float64" else 2e-6
    whole = torch.nn.ModuleDict({"encoder": theirs, "head": torch.nn.Linear(5, 2)})
    optimizer = torch.optim.Adam(whole.parameters())
    files = {name: tmp_path / f"{name}.pt" for name in ("plain", "nested", "old")}
    torch.save(theirs.state_dict(), files["plain"])
    torch.save({"epoch": 3, "optimizer": optimizer.state_dict(), "state_dict": whole.state_dict()}, files["nested"])
    torch.save(theirs.state_dict(), files["old"], _use_new_zipfile_serialization=False)
    sources = [(theirs, ""), (whole, "encoder."), (theirs.state_dict(), ""), (whole.state_dict(), "encoder.")]
    sources += [(files["plain"], ""), (str(files["nested"]), "encoder."), (files["old"], "")]
    laid_out = arguments.get("batch_first", False)
    for source, prefix in sources:
        found = LSTM.from_torch(source, prefix, batch_first=laid_out, backend="numpy")
        compare(found, theirs, kind, tolerance)
    live = LSTM.from_torch(whole, "encoder.", backend="numpy")
    assert (live.batch_first, live.stack.dropout) == (laid_out, arguments.get("dropout", 0.0))
    other = torch.nn.LSTM(3, 5, **arguments).to(kind).eval()
    other.load_state_dict({name: torch.from_numpy(value) for name, value in live.to_torch().items()})
    compare(live, other, kind, tolerance)
    again = LSTM.from_torch(other, backend="numpy")
    for name, value in live.parameters.items():
        assert again.parameters[name].tobytes() == value.tobytes()


def test_bfloat16() -> None:
    pytest.importorskip("ml_dtypes")
    theirs = module(torch.bfloat16)
    found = LSTM.from_torch(theirs, dtype="float64", backend="numpy")
    wanted = theirs.state_dict()["weight_ih_l0"].double().numpy()
    np.testing.assert_array_equal(found.parameters["weight_x_l0"], wanted)


class Harmful:
    """What a file of code could do: it writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    path, sign = tmp_path / "code.pt", tmp_path / "ran"
    for value in (module(), {"state_dict": module().state_dict(), "more": Harmful(sign)}):
        torch.save(value, path)
        with pytest.raises(
            ValueError, match=r"code.pt: expected a file of tensors, as torch.save.module.state_dict"
        ) as e:
            LSTM.from_torch(path)
        assert "\n" not in str(e.value) and not sign.exists()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"code.pt: expected a file of tensors"):
        LSTM.from_torch(path)
    torch.save(torch.nn.GRU(3, 4).state_dict(), path)
    with pytest.raises(ValueError, match=r"code.pt: weight_hh_l0: expected shape .* is it a GRU or an RNN\?"):
        LSTM.from_torch(path)
