"""PyTorch's ``torch.nn.LSTM``: its state_dict, live modules and files. Only .pt and .pth files need PyTorch.

PyTorch stacks gates as we do, in the order i, f, g, o, and has two biases that it adds; ours is their sum.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.dialects.arrays import add_biases, check_floats
from lstmcore.files import check_regular, write_atomically
from lstmcore.layer_file import LayerFile, in_dtype
from lstmcore.precision import get_precision, numpy_dtype
from lstmcore.stored_weights import read_parameters

Array: TypeAlias = npt.NDArray[Any]

#: Our name -> PyTorch's; a bias has two, of which ours is the sum.
_NAMES: Final = {
    "weight_x": "weight_ih", "weight_h": "weight_hh", "bias": "bias_ih", "weight_proj": "weight_hr",
}  # fmt: skip
_PARAMETER: Final = re.compile(r"(weight|bias)_(ih|hh|hr)_l\d+(_reverse)?")
#: PyTorch's name -> ours.
_OURS: Final = {theirs: ours for ours, theirs in _NAMES.items()} | {"bias_hh": "bias"}
#: The switches that ``torch.nn.LSTM`` has; any other must have its default.
_CARRIED: Final = frozenset({"input_size", "hidden_size", "bias", "proj_size", "reverse", "layer_norm_eps"})
_STORED: Final = {"F64": "float64", "F32": "float32", "F16": "float16"}


def is_torch_name(name: object) -> bool:
    """Return whether a parameter has a name of ``torch.nn.LSTM``, after any prefix."""
    return isinstance(name, str) and _PARAMETER.fullmatch(name.rpartition(".")[2]) is not None


def read_torch(source: Any, prefix: str = "") -> LayerFile:
    """Return the LSTM in `source` in our terms.

    Parameters
    ----------
    source
        A state_dict (name -> tensor or array), a live module, or the path of a safetensors, .pt or .pth file.
    prefix
        What precedes the names of the LSTM, for example ``"encoder.lstm."``.

    Raises
    ------
    TypeError, ValueError
        No LSTM under that prefix; names, shapes or dtypes that are not those of one.
    OSError
        The file cannot be read.
    ImportError
        A .pt or .pth file where PyTorch is not installed.
    """
    batch_first, dropout, where = False, 0.0, ""
    if not isinstance(prefix, str):
        raise TypeError(f"prefix: expected a text, '' for none; got {type(prefix).__name__}")
    if isinstance(source, str | Path):
        values, where = read_tensors(Path(source), prefix), f"{source}: "
    elif isinstance(source, Mapping):
        values = source
    elif callable(getattr(source, "state_dict", None)):
        values = source.state_dict()
        owner = dict(source.named_modules()).get(prefix.removesuffix("."))
        batch_first, dropout = bool(getattr(owner, "batch_first", False)), float(getattr(owner, "dropout", 0.0))
    else:
        raise TypeError(
            f"from_torch: expected a state_dict, a module or the path of a file; got {type(source).__name__}"
        )
    try:
        stack, parameters = from_state_dict(values, prefix, dropout)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}{error}") from error
    precision = get_precision(str(parameters["weight_x_l0"].dtype))
    return LayerFile(stack, precision, batch_first, parameters)


def prefixes(path: str | Path) -> list[str]:
    """Return the prefixes of the names of LSTMs, and of GRUs and RNNs, in a file; errors are those of `read_torch`."""
    names = [name for name in read_tensors(Path(path), "\0") if is_torch_name(name)]
    return sorted(name.removesuffix("weight_ih_l0") for name in names if name.endswith("weight_ih_l0"))


def write_torch(path: str | Path, content: LayerFile, prefix: str = "") -> None:
    """Write a state_dict: into a .pt or .pth file by PyTorch, else into a safetensors file.

    Raises
    ------
    ValueError
        Layers or a switch that ``torch.nn.LSTM`` does not have; a path that cannot be written.
    ImportError
        A .pt or .pth file where PyTorch is not installed.
    """
    if not isinstance(content.layers, StackConfig):
        kinds = ", ".join(layer.kind for layer in content.layers)
        raise ValueError(f"torch: expected the layers of one LSTM; got {kinds}")
    storage = content.precision.storage
    plain = "float32" if storage == "bfloat16" else storage  # NumPy, by which both files are written, has none
    parameters = in_dtype(read_parameters(content.parameters, storage), plain)
    values = to_state_dict(content.layers, cast(Mapping[str, Array], parameters), prefix)
    if Path(path).suffix not in (".pt", ".pth"):
        from safetensors.numpy import save

        write_atomically(path, save({name: np.ascontiguousarray(value) for name, value in values.items()}))
        return
    try:
        import torch
    except ImportError:
        raise ImportError(f"{path}: needs PyTorch to be written: 'pip install torch', or a safetensors file") from None
    stream = io.BytesIO()
    torch.save({name: torch.from_numpy(value) for name, value in values.items()}, stream)
    write_atomically(path, stream.getvalue())


def from_state_dict(
    values: Mapping[str, Any], prefix: str = "", dropout: float = 0.0
) -> tuple[StackConfig, dict[str, Array]]:
    """Return the stack and the parameters of a state_dict, whose names begin with `prefix`.

    Other names are passed over. `dropout`, which no state_dict has, acts between layers.

    Raises
    ------
    TypeError, ValueError
        No LSTM under `prefix`; names, shapes or dtypes that are not those of one.
    """
    if (other := next((name for name in values if not isinstance(name, str)), None)) is not None:
        raise TypeError(f"state_dict: expected names that are texts; got {other!r:.80}")
    arrays = {
        name.removeprefix(prefix): _array(name, value)
        for name, value in values.items()
        if name.startswith(prefix) and _PARAMETER.fullmatch(name.removeprefix(prefix))
    }
    if "weight_ih_l0" not in arrays:
        others = sorted(repr(name.removesuffix("weight_ih_l0")) for name in values if name.endswith("weight_ih_l0"))
        found = f"one of {', '.join(others)}" if others else "that of an LSTM, which has weight_ih_l0"
        raise ValueError(f"prefix: expected {found}; got {prefix!r}")
    if len(dtypes := {str(array.dtype) for array in arrays.values()}) > 1:
        raise TypeError(f"{prefix}weight_ih_l0: expected one dtype in all tensors; got {', '.join(sorted(dtypes))}")
    rows, width = _matrix(prefix, "weight_hh_l0", arrays)
    projected, hidden = "weight_hr_l0" in arrays, rows // 4
    if rows % 4 or (not projected and width != hidden):
        raise ValueError(
            f"{prefix}weight_hh_l0: expected shape (4 H, H) of an LSTM; got {(rows, width)}: is it a GRU or an RNN?"
        )
    config = LSTMConfig(
        input_size=_matrix(prefix, "weight_ih_l0", arrays)[1],
        hidden_size=hidden,
        bias="bias_ih_l0" in arrays,
        proj_size=width if projected else 0,
    )
    layers = 1 + max(int(name.split("_l")[1].split("_")[0]) for name in arrays)
    if layers > len(arrays):
        raise ValueError(f"{prefix}weight_ih_l1: expected tensors of every layer; got those of layer {layers - 1}")
    stack = StackConfig.make(
        config,
        num_layers=layers,
        bidirectional="weight_ih_l0_reverse" in arrays,
        dropout=dropout if layers > 1 else 0.0,
    )
    _check_shapes(prefix, state_dict_shapes(stack), arrays)
    return stack, {name: _ours(arrays, name) for name in stack.parameter_shapes}


def to_state_dict(stack: StackConfig, parameters: Mapping[str, Array], prefix: str = "") -> dict[str, Array]:
    """Return the state_dict of a ``torch.nn.LSTM``, as arrays; ``bias_ih`` is our bias, and ``bias_hh`` is 0.

    Raises
    ------
    ValueError
        A switch that ``torch.nn.LSTM`` does not have; the message names it.
    """
    for config in stack.configs:
        for item in fields(LSTMConfig):
            value = getattr(config, item.name)
            if item.init and item.name not in _CARRIED and value != item.default:
                raise ValueError(f"{item.name}: expected {item.default}, as torch.nn.LSTM has it; got {value}")
    made = {}
    for name, ours in our_names(stack).items():
        array = parameters[ours]
        made[prefix + name] = np.zeros_like(array) if name.startswith("bias_hh") else np.array(array)
    return made


def state_dict_shapes(stack: StackConfig) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a state_dict, in PyTorch's order.

    What ``torch.nn.LSTM`` lacks, as ``peephole_l0``, keeps our name, after the rest of its layer and direction.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for config, suffix in zip(stack.configs, stack.suffixes, strict=True):
        own = config.parameter_shapes
        shapes |= {f"weight_{part}{suffix}": own[name] for part, name in (("ih", "weight_x"), ("hh", "weight_h"))}
        if config.bias:
            shapes |= {f"bias_{part}{suffix}": own["bias"] for part in ("ih", "hh")}
        if config.proj_size:
            shapes[f"weight_hr{suffix}"] = own["weight_proj"]
        shapes |= {name + suffix: shape for name, shape in own.items() if name not in _NAMES}
    return shapes


def our_names(stack: StackConfig) -> dict[str, str]:
    """Return for each name of `state_dict_shapes` ours; both biases have one, which is their sum."""
    names = {}
    for name in state_dict_shapes(stack):
        kind, _, suffix = name.partition("_l")
        names[name] = f"{_OURS.get(kind, kind)}_l{suffix}"
    return names


def _check_shapes(prefix: str, expected: Mapping[str, tuple[int, ...]], arrays: Mapping[str, Array]) -> None:
    """Raise ValueError unless `arrays` has these names and shapes and no others."""
    for name in dict.fromkeys((*expected, *arrays)):
        shape = arrays[name].shape if name in arrays else "none"
        if shape != expected.get(name, "none"):
            raise ValueError(f"{prefix}{name}: expected shape {expected.get(name, 'none')}; got {shape}")


def _ours(arrays: Mapping[str, Array], name: str) -> Array:
    """Return our parameter `name`; a bias is the sum of two, bit for bit the first where the second is 0."""
    kind, _, suffix = name.partition("_l")
    array = arrays[f"{_NAMES[kind]}_l{suffix}"]
    if kind != "bias":
        return array
    return add_biases(array, arrays[f"bias_hh_l{suffix}"])


def _matrix(prefix: str, name: str, arrays: Mapping[str, Array]) -> tuple[int, int]:
    if name not in arrays or arrays[name].ndim != 2:
        got = "none" if name not in arrays else arrays[name].shape
        raise ValueError(f"{prefix}{name}: expected a matrix; got {got}")
    rows, columns = arrays[name].shape
    return rows, columns


def _array(name: str, value: Any) -> Array:
    """Return a tensor or an array as an array of NumPy."""
    if callable(getattr(value, "detach", None)):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # NumPy has no such dtype: float32 holds its numbers
            return np.asarray(value.float().numpy().astype(numpy_dtype("bfloat16")))
        value = value.numpy()
    check_floats(name, value)
    return cast(Array, value)


def read_tensors(path: Path, prefix: str) -> Mapping[str, Any]:
    """Return the tensors of a file; of a safetensors file those with names of an LSTM, empty without `prefix`."""
    check_regular(path)
    with path.open("rb") as stream:
        start = stream.read(9)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return _unnested(_load(path), prefix)
    if start[8:9] != b"{":
        raise ValueError(f"{path}: expected a safetensors, .pt or .pth file; got another kind")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = [name for name in file.keys() if is_torch_name(name)]  # noqa: SIM118  (it is no mapping)
            for name in names:
                if name.startswith(prefix) and (dtype := file.get_slice(name).get_dtype()) not in _STORED:
                    raise ValueError(f"{path}: {name}: expected {', '.join(_STORED)}; got {dtype}")
            return {name: file.get_tensor(name) if name.startswith(prefix) else np.empty(0) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a whole safetensors file; got {str(error).splitlines()[0]}") from None


def _load(path: Path) -> Any:
    """Return what a file of PyTorch holds; code in it is refused, not run."""
    try:
        import torch
    except ImportError:
        raise ImportError(
            f"{path}: needs PyTorch to be read: 'pip install torch', or save it with safetensors.torch.save_file"
        ) from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file fails in any way; the text of others tells how to run their code
        raise ValueError(
            f"{path}: expected a file of tensors, as torch.save(module.state_dict(), path) writes it; got one that "
            "cannot be read without running code of it, or a damaged one"
        ) from error


def _unnested(found: Any, prefix: str) -> Mapping[str, Any]:
    """Return the mapping in a checkpoint that has the LSTM: itself, or one inside it beside an optimizer's state."""
    candidates = list(_mappings(found))
    for values in candidates:
        if f"{prefix}weight_ih_l0" in values:
            return values
    for values in candidates:
        if any(is_torch_name(name) for name in values):
            return values
    return {}


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield {name: item for name, item in value.items() if isinstance(name, str)}
        for item in value.values():
            yield from _mappings(item)
