"""`LSTM`: an ``nn.Module`` in place of ``torch.nn.LSTM``, computed by a backend of lstmcore."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, TypeAlias

import torch
from torch.nn.utils.rnn import PackedSequence

import lstmcore
from lstmcore import registry
from lstmcore.config import SHARED_SWITCHES, SWITCHES, LSTMConfig, StackConfig
from lstmcore.dialects.torch import our_names, state_dict_shapes
from lstmcore.torch.differentiation import Recurrence, lstm
from lstmcore.torch.shared_memory import to_array
from lstmcore.torch.tensor_stack import describe, dtype_name, tensor_stack

Tensor: TypeAlias = torch.Tensor
Pair: TypeAlias = tuple[Tensor, Tensor]


class LSTM(torch.nn.RNNBase):  # type: ignore[misc,unused-ignore]  # Any without PyTorch
    """An LSTM for PyTorch models, with the arguments, names and shapes of ``torch.nn.LSTM``.

    Tensors are on the processor; on a GPU with a backend that computes there, as cupy, which has not run on one yet.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype
        As for ``torch.nn.LSTM``; dropout is below 1.
    backend
        Name of a backend; None takes ``LSTMCORE_BACKEND`` from the environment, else ``"auto"``.
    **switches
        The other switches of `lstmcore.LSTM`, by name: `peephole`, `layer_norm`, `zoneout_hidden`, `recurrent_dropout`
        and so on. Random masks are drawn in training mode, from PyTorch's generator.

    Attributes
    ----------
    stack : lstmcore.StackConfig

    Raises
    ------
    TypeError, ValueError
        An argument outside its domain; `lstmcore.UnsupportedError` if the backend does not declare this LSTM.

    Notes
    -----
    A state_dict of ``torch.nn.LSTM`` loads into it, and the other way round if no other switch is on. Parameters of
    other switches have our names, as ``peephole_l0``.

    First derivatives exist in reverse and in forward mode; a second derivative is a RuntimeError. Under ``autocast``
    the LSTM computes in the dtype of its parameters and returns the dtype of ``autocast``.

    Tensors share memory with the backend's arrays. Weights are packed again when their numbers have changed; on a GPU
    in every call, since a look at them would wait for it.

    Examples
    --------
    >>> from lstmcore.torch import LSTM  # doctest: +SKIP
    >>> lstm = LSTM(3, 5, bidirectional=True, layer_norm=True)  # doctest: +SKIP
    >>> y, (h_n, c_n) = lstm(torch.zeros(7, 2, 3), lengths=torch.tensor([7, 4]))  # doctest: +SKIP
    >>> y.shape  # doctest: +SKIP
    torch.Size([7, 2, 10])
    """

    def __init__(  # noqa: PLR0913  (a public constructor)
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str | None = None,
        **switches: Any,
    ) -> None:
        if backend is not None and not isinstance(backend, str):
            raise TypeError(f"backend: expected a name or None; got {type(backend).__name__}")
        if unknown := sorted(set(switches) - set(SHARED_SWITCHES)):
            raise TypeError(f"{unknown[0]}: expected a switch, one of {', '.join(SHARED_SWITCHES)}; got another name")
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size)
        super().__init__("LSTM", *sizes, device=device, dtype=dtype)
        config = LSTMConfig(input_size=input_size, hidden_size=hidden_size, bias=bias, proj_size=proj_size, **switches)
        self.stack = StackConfig.make(
            config,
            num_layers=num_layers,
            bidirectional=bidirectional,
            dropout=self.dropout if num_layers > 1 else 0.0,
        )
        self._backend, self._description = backend, describe(self.stack, backend or registry.default_name())
        rates = (config.zoneout_hidden, config.zoneout_cell, config.recurrent_dropout, self.stack.dropout)
        self._is_random = any(rates)
        self._register(device, dtype)
        tensor_stack(self._description, self.weight_ih_l0.dtype)

    def _register(self, device: Any, dtype: torch.dtype | None) -> None:
        """Register the parameters of switches that ``torch.nn.LSTM`` lacks, and those of other shapes."""
        shapes = state_dict_shapes(self.stack)
        self._names = tuple(shapes)
        known = dict(self.named_parameters())
        others = {name: shape for name, shape in shapes.items() if name not in known or known[name].shape != shape}
        for name, shape in others.items():
            setattr(self, name, torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        if others:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters as ``torch.nn.LSTM`` does; gains of the layer norm are 1 and its shift is 0."""
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            if name.startswith("norm_"):
                torch.nn.init.constant_(parameter, 1.0 if "gain" in name else 0.0)

    def flatten_parameters(self) -> None:
        """Do nothing: parameters are not laid out for cuDNN, which does not compute this layer."""

    @classmethod
    def from_lstm(cls, source: lstmcore.LSTM) -> Self:
        """Return a module with the switches, the weights and the backend of an `lstmcore.LSTM`."""
        config, stack = source.stack.layers[0][0], source.stack
        module = cls(
            config.input_size,
            config.hidden_size,
            stack.num_layers,
            batch_first=source.batch_first,
            dropout=stack.dropout,
            bidirectional=stack.num_directions == 2,
            dtype=getattr(torch, source.precision.storage),
            backend=source.backend.name,
            **{name: getattr(config, name) for name in SHARED_SWITCHES if name not in ("bias", "proj_size")},
            bias=config.bias,
            proj_size=config.proj_size,
        )
        parameters = source.parameters
        with torch.no_grad():
            for name, ours in our_names(stack).items():
                tensor = torch.as_tensor(parameters[ours].astype("float64"))
                getattr(module, name).copy_(torch.zeros_like(tensor) if name.startswith("bias_hh") else tensor)
        return module

    def to_lstm(self, *, backend: str | None = None) -> lstmcore.LSTM:
        """Return an `lstmcore.LSTM` with the switches and copies of the weights, which runs without PyTorch.

        Parameters
        ----------
        backend
            Name of a backend; None takes the one of this module.
        """
        dtype = self.weight_ih_l0.dtype
        added: dict[str, Tensor] = {}
        for name, ours in our_names(self.stack).items():
            tensor = getattr(self, name).detach()
            added[ours] = added[ours] + tensor if ours in added else tensor
        name = dtype_name(dtype)
        parameters = {ours: to_array(tensor.cpu(), name) for ours, tensor in added.items()}
        return lstmcore.LSTM.from_config(
            self.stack, parameters, batch_first=self.batch_first, dtype=name, backend=backend or self._backend
        )

    def forward(
        self, input: Tensor | PackedSequence, hx: Pair | None = None, lengths: Tensor | Sequence[int] | None = None
    ) -> tuple[Any, Pair]:
        """Run all steps.

        Parameters
        ----------
        input
            (T, N, I), (N, T, I) with `batch_first`, (T, I), or a PackedSequence.
        hx
            Initial h and c; zeros if None.
        lengths
            (N,) whole numbers from 0 to T. Past a row's end its state holds and y is 0; the reversed direction starts
            at the row's own end. Not for a PackedSequence and not for (T, I).

        Returns
        -------
        output
            Like `input`, D * P wide.
        (h_n, c_n)
            The state of each row after its last step.

        Raises
        ------
        ValueError, RuntimeError
            As ``torch.nn.LSTM``: a dtype or a number of axes is a ValueError, a size is a RuntimeError.
        """
        if isinstance(input, PackedSequence):
            return self._run_packed(input, hx, lengths)
        if input.dim() not in (2, 3):
            raise ValueError(f"input: expected 2 or 3 axes; got {input.dim()}")
        batched = input.dim() == 3
        if lengths is not None and not batched:
            raise ValueError("lengths: expected None for an input of shape (T, I), which has no batch; got lengths")
        axis = 0 if self.batch_first else 1
        x = input if batched else input.unsqueeze(axis)
        if hx is not None:
            for part in hx:
                if part.dim() != input.dim():
                    raise RuntimeError(f"hx: expected {input.dim()} axes, as input has; got {part.dim()}")
            hx = hx if batched else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        y, h, c = self._run(x.transpose(0, 1) if self.batch_first else x, hx, lengths)
        if not batched:
            return y.squeeze(1), (h.squeeze(1), c.squeeze(1))
        return (y.transpose(0, 1) if self.batch_first else y), (h, c)

    def _run_packed(self, input: PackedSequence, hx: Pair | None, lengths: Any) -> tuple[PackedSequence, Pair]:
        """Run a PackedSequence, whose rows are sorted by length, as rows of (T, N, I)."""
        if lengths is not None:
            raise ValueError("lengths: expected None with a PackedSequence, which has lengths; got lengths")
        data, sizes, order, inverse = input
        rows = torch.arange(int(sizes[0]), device="cpu") < sizes[:, None]  # (T, N): whether a row has that step
        index = rows.flatten().nonzero().squeeze(1).to(data.device)
        x = data.new_zeros((rows.numel(), data.shape[-1])).index_copy(0, index, data)
        if hx is not None and order is not None:
            hx = (hx[0].index_select(1, order), hx[1].index_select(1, order))
        y, h, c = self._run(x.reshape(*rows.shape, -1), hx, rows.sum(0))
        if inverse is not None:
            h, c = h.index_select(1, inverse), c.index_select(1, inverse)
        return PackedSequence(y.flatten(0, 1).index_select(0, index), sizes, order, inverse), (h, c)

    def _run(self, x: Tensor, hx: Pair | None, lengths: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Run x (T, N, I) and return y, h and c."""
        parameters = [getattr(self, name) for name in self._names]
        dtype, wanted = parameters[0].dtype, None
        kind = "cuda" if x.is_cuda else "cpu"
        if torch.is_autocast_enabled(kind):
            wanted = torch.get_autocast_dtype(kind)
            x = x.to(dtype)
            hx = None if hx is None else (hx[0].to(dtype), hx[1].to(dtype))
        self._check(x, hx, dtype)
        h, c = (None, None) if hx is None else hx
        seed = torch.randint(2**62, (1,), device="cpu") if self.training and self._is_random else None
        if lengths is not None:
            lengths = torch.as_tensor(lengths, device="cpu")
        record = torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in (x, h, c, *parameters)
        )
        if torch.compiler.is_compiling():
            results = lstm(self._description, record, x, h, c, lengths, seed, parameters)
        else:
            results = Recurrence.apply(self._description, record, x, h, c, lengths, seed, *parameters)
        y, h_n, c_n = results[:3]
        return (y, h_n, c_n) if wanted is None else (y.to(wanted), h_n.to(wanted), c_n.to(wanted))

    def _check(self, x: Tensor, hx: Pair | None, dtype: torch.dtype) -> None:
        """Raise as ``torch.nn.LSTM`` does, with messages that name the argument."""
        if x.dtype != dtype:
            raise ValueError(
                f"input: expected dtype {dtype}, that of the weights; got {x.dtype}: use input.to({dtype})"
            )
        if x.shape[-1] != self.input_size:
            raise RuntimeError(f"input: expected a last axis of input_size={self.input_size}; got {x.shape[-1]}")
        self._check_device("input", x)
        if hx is None:
            return
        entries, batch = self.num_layers * (2 if self.bidirectional else 1), x.shape[1]
        for index, width in enumerate((self.proj_size or self.hidden_size, self.hidden_size)):
            part = hx[index]
            self._check_device(f"hx[{index}]", part)
            if tuple(part.shape) != (entries, batch, width):
                raise RuntimeError(f"hx[{index}]: expected size {(entries, batch, width)}; got {tuple(part.shape)}")
            if part.dtype != dtype:
                raise ValueError(f"hx[{index}]: expected dtype {dtype}, that of the weights; got {part.dtype}")

    def _check_device(self, name: str, tensor: Tensor) -> None:
        """Raise RuntimeError unless a tensor is where the weights are, on the processor or a GPU."""
        device = self.weight_ih_l0.device
        if tensor.device != device:
            raise RuntimeError(f"{name}: expected a tensor on {device}, where the weights are; got {tensor.device}")
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"{name}: expected tensors on the processor or a GPU; got {device}")

    def extra_repr(self) -> str:
        """Return the arguments that are not defaults."""
        config = self.stack.layers[0][0]
        values = {name: getattr(config, name) for name in SHARED_SWITCHES if name not in ("bias", "proj_size")}
        shown = {name: value for name, value in values.items() if value != SWITCHES[name].default}
        shown |= {} if self._backend is None else {"backend": self._backend}
        text: str = super().extra_repr() + "".join(f", {name}={value!r}" for name, value in shown.items())
        return text
