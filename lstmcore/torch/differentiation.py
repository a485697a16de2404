"""Derivatives for PyTorch: a function of its autograd, and an operator for its compiler."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import torch

from lstmcore.torch.tensor_stack import Inputs, tensor_stack

Tensor: TypeAlias = torch.Tensor

_SECOND: Final = (
    "lstmcore.torch.LSTM has no second derivative: its backward pass is compiled code, which autograd does not see; "
    "use torch.nn.LSTM where a loss contains gradients, as a gradient penalty does"
)


class Recurrence(torch.autograd.Function):  # type: ignore[misc,unused-ignore]  # Any without PyTorch
    """All layers and steps: ``apply(description, record, x, h, c, lengths, seed, *parameters)``.

    It gives y, the final h and c, and a handle of the tape, which no caller needs.
    """

    @staticmethod
    def forward(description: str, record: bool, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        """Run the kernel."""
        return tensor_stack(description, x.dtype).forward(Inputs.of(x, *rest), record=record)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what derivatives need; PyTorch refuses them if a tensor among it is written to meanwhile."""
        description, _, *tensors = inputs
        y, _, _, handle = output
        ctx.mark_non_differentiable(handle)
        ctx.set_materialize_grads(False)
        ctx.description = description
        ctx.save_for_backward(*tensors, y, handle)
        ctx.save_for_forward(*tensors, y, handle)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Any, ...]:
        """Run the backward pass."""
        *tensors, _, handle = ctx.saved_tensors
        dx, dh, dc, *parameters = _Gradients.apply(ctx.description, handle, *incoming[:3], *tensors)
        made = (None, None, dx, dh, dc, None, None, *parameters)
        return tuple(gradient if needed else None for gradient, needed in zip(made, ctx.needs_input_grad, strict=True))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        """Return the derivatives along tangents."""
        *tensors, _, _ = ctx.saved_tensors
        return *_Tangents.apply(ctx.description, *tensors, *tangents[2:]), None


class _Last(torch.autograd.Function):  # type: ignore[misc,unused-ignore]  # Any without PyTorch
    """A function that has no derivative: functions of their own, so that transforms of torch.func reach tensors."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *incoming: Any) -> Any:
        """Refuse."""
        raise RuntimeError(_SECOND)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Refuse."""
        raise RuntimeError(_SECOND)


class _Gradients(_Last):
    """Gradients of x, h, c and the parameters, from those of y, h and c.

    The tensors of the forward pass are arguments too, so that PyTorch knows what the gradients depend on.
    """

    @staticmethod
    def forward(
        description: str, handle: Tensor, dy: Tensor | None, dh: Tensor | None, dc: Tensor | None, *tensors: Any
    ) -> tuple[Tensor, ...]:
        dx, dh0, dc0, parameters = tensor_stack(description, tensors[0].dtype).backward(handle, dy, dh, dc)
        return dx, dh0, dc0, *parameters


class _Tangents(_Last):
    """Derivatives of y, h and c along tangents; tensors, then their tangents."""

    @staticmethod
    def forward(description: str, *tensors: Any) -> tuple[Tensor, ...]:
        middle = len(tensors) // 2
        inputs, along = Inputs.of(*tensors[:middle]), Inputs.of(*tensors[middle:])
        return tensor_stack(description, inputs.x.dtype).jvp(inputs, along)


# The operator, which torch.compile takes as a whole ----------------------------------------------------------------

_INPUTS: Final = "Tensor x, Tensor? h, Tensor? c, Tensor? lengths, Tensor? seed, Tensor[] parameters"


def _forward(  # noqa: PLR0913  (the arguments of the operator)
    description: str,
    record: bool,
    x: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    lengths: Tensor | None,
    seed: Tensor | None,
    parameters: list[Tensor],
) -> tuple[Tensor, ...]:
    return tensor_stack(description, x.dtype).forward(Inputs(x, h, c, lengths, seed, parameters), record=record)


def _forward_shapes(description: str, record: bool, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    stack = tensor_stack(description, x.dtype).stack
    steps, batch, _ = x.shape
    entries = len(stack.configs)
    return (
        x.new_empty((steps, batch, stack.num_directions * stack.output_size)),
        x.new_empty((entries, batch, stack.output_size)),
        x.new_empty((entries, batch, stack.hidden_size)),
        x.new_empty((1,), dtype=torch.int64, device="cpu"),
    )


def _backward(  # noqa: PLR0913  (the arguments of the operator)
    description: str,
    handle: Tensor,
    x: Tensor,
    y: Tensor,
    parameters: list[Tensor],
    dy: Tensor | None,
    dh: Tensor | None,
    dc: Tensor | None,
) -> list[Tensor]:
    dx, dh0, dc0, gradients = tensor_stack(description, x.dtype).backward(handle, dy, dh, dc)
    return [dx, dh0, dc0, *gradients]


def _backward_shapes(
    description: str, handle: Tensor, x: Tensor, y: Tensor, parameters: list[Tensor], *rest: Any
) -> list[Tensor]:
    stack = tensor_stack(description, x.dtype).stack
    entries, batch = len(stack.configs), x.shape[1]
    return [
        x.new_empty(x.shape),
        x.new_empty((entries, batch, stack.output_size)),
        x.new_empty((entries, batch, stack.hidden_size)),
        *(parameter.new_empty(parameter.shape) for parameter in parameters),
    ]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep x and y too: the tape may refer to their memory, which the compiler would use again otherwise."""
    description, _, x, h, _, _, _, parameters = inputs
    ctx.description, ctx.has_state = description, h is not None
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[3], x, output[0], *parameters)


def _differentiate(ctx: Any, *incoming: Tensor | None) -> tuple[Any, ...]:
    handle, x, y, *parameters = ctx.saved_tensors
    dx, dh, dc, *gradients = lstm_backward(ctx.description, handle, x, y, parameters, *incoming[:3])
    state = (dh, dc) if ctx.has_state else (None, None)
    return (None, None, dx, *state, None, None, gradients)


#: ``lstm(description, record, x, h, c, lengths, seed, parameters)``: as `Recurrence`.
lstm: Final = torch.library.custom_op(
    "lstmcore::lstm",
    _forward,
    mutates_args=(),
    schema=f"(str description, bool record, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
lstm_backward: Final = torch.library.custom_op(
    "lstmcore::lstm_backward",
    _backward,
    mutates_args=(),
    schema="(str description, Tensor handle, Tensor x, Tensor y, Tensor[] parameters, Tensor? dy, Tensor? dh, "
    "Tensor? dc) -> Tensor[]",
)
lstm.register_fake(_forward_shapes)
lstm_backward.register_fake(_backward_shapes)
lstm.register_autograd(_differentiate, setup_context=_keep)
