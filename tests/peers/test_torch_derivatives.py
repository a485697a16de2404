"""`lstmcore.torch.LSTM` under PyTorch's autograd, its transforms, its compiler and its training loops."""

from __future__ import annotations

import gc
import shutil
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import lstmcore.torch
from lstmcore.torch.differentiation import lstm as operator
from lstmcore.torch.differentiation import lstm_backward
from lstmcore.torch.tape_handle import count_tapes

# PyTorch's own code for forward-mode derivatives and for its compiler warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*CUDA.*")

RANDOM: dict[str, Any] = {"dropout": 0.3, "zoneout_hidden": 0.2, "zoneout_cell": 0.3, "recurrent_dropout": 0.25}
#: The switches of two checks; together every parameter of every switch.
CHECKED: tuple[dict[str, Any], ...] = (
    {"num_layers": 2, "peephole": True, "proj_size": 1, **RANDOM},
    {"bidirectional": True, "layer_norm": True, "batch_first": True},
)


def module(dtype: Any = torch.float64, **arguments: Any) -> Any:
    torch.manual_seed(4)
    return lstmcore.torch.LSTM(2, 3, dtype=dtype, backend="numpy", **arguments)


def leaf(*shape: int, dtype: Any = torch.float64) -> Any:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("arguments", CHECKED, ids=str)
@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_gradcheck(arguments: dict[str, Any], mode: str) -> None:
    """In training mode with random masks, which a seed fixes; lengths differ."""
    lstm = module(**arguments)
    entries = lstm.num_layers * (1 + lstm.bidirectional)
    names = [name for name, _ in lstm.named_parameters()]
    given = [leaf(3, 3, 2), leaf(entries, 3, lstm.proj_size or 3), leaf(entries, 3, 3)]

    def call(x: Any, h: Any, c: Any, *parameters: Any) -> tuple[Any, ...]:
        torch.manual_seed(1)
        weights = dict(zip(names, parameters, strict=True))
        y, last = torch.func.functional_call(lstm, weights, (x, (h, c)), {"lengths": torch.tensor([3, 0, 2])})
        return y, *last

    inputs = (*given, *(parameter.detach().requires_grad_() for parameter in lstm.parameters()))
    forward = mode == "forward"
    assert torch.autograd.gradcheck(
        call, inputs, check_forward_ad=forward, check_backward_ad=not forward, fast_mode=True
    )


def test_transforms_of_torch_func() -> None:
    lstm, x = module(), torch.randn(3, 2, 2, dtype=torch.float64)
    weights = {name: parameter.detach() for name, parameter in lstm.named_parameters()}
    found = torch.func.grad(lambda given: torch.func.functional_call(lstm, given, (x,))[0].sum())(weights)
    lstm(x)[0].sum().backward()
    for name, parameter in lstm.named_parameters():
        assert torch.equal(found[name], parameter.grad)
    along = torch.randn_like(x)
    _, moved = torch.func.jvp(lambda given: lstm(given)[0], (x,), (along,))
    step = 1e-6
    with torch.no_grad():
        slope = (lstm(x + step * along)[0] - lstm(x - step * along)[0]) / (2 * step)
    torch.testing.assert_close(moved, slope, rtol=1e-7, atol=1e-8)


def test_a_second_derivative_is_refused_with_the_reason() -> None:
    """Also where the incoming gradient is a constant, for which the result would be a gradient of 0."""
    lstm, x = module(), leaf(3, 2, 2)
    (gradient,) = torch.autograd.grad(lstm(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative: its backward pass is compiled code"):
        gradient.square().sum().backward()
    lstm.requires_grad_(False)
    (gradient,) = torch.autograd.grad(lstm(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        (gradient.sum() + x.sum()).backward()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.func.grad(lambda a: torch.func.grad(lambda b: lstm(b)[0].sum())(a).sum())(x.detach())
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(lambda a: lstm(a)[0])(x.detach()[None])


def test_tapes_are_freed() -> None:
    """After the backward pass, with a graph that is dropped, and when a forward pass fails."""
    gc.collect()
    before = count_tapes()
    lstm, x = module(**RANDOM | {"num_layers": 2}), leaf(4, 2, 2)
    y, _ = lstm(x)
    assert count_tapes() == before + 1
    y.sum().backward(retain_graph=True)
    first, x.grad = x.grad, None
    y.sum().backward()
    assert count_tapes() == before and torch.equal(first, x.grad)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()
    kept = [lstm(x) for _ in range(5)]
    assert count_tapes() == before + 5
    del kept[1:]
    gc.collect()
    assert count_tapes() == before + 1
    with torch.no_grad():
        lstm(x)
    with pytest.raises(ValueError, match="lengths"):
        lstm(x, lengths=[9, 9])
    assert count_tapes() == before + 1


def test_other_users_of_saved_tensors() -> None:
    """Checkpointing runs the call again; a hook that keeps copies is an error; so is an output written to."""
    lstm, x = module(**RANDOM | {"num_layers": 2}), leaf(4, 2, 2)
    torch.manual_seed(2)
    lstm(x)[0].square().sum().backward()
    wanted, x.grad = x.grad, None
    torch.manual_seed(2)
    checkpoint(lambda given: lstm(given)[0], x, use_reentrant=False).square().sum().backward()
    assert torch.equal(x.grad, wanted)
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda kept: kept):
        y, _ = lstm(x)
    gc.collect()
    with pytest.raises(RuntimeError, match="expected the record of the forward pass"):
        y.sum().backward()
    y, _ = lstm(x)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_random_masks_follow_the_generator_of_torch() -> None:
    lstm, x = module(**RANDOM | {"num_layers": 2}), torch.randn(9, 2, 2, dtype=torch.float64)
    torch.manual_seed(7)
    first, second = lstm(x)[0], lstm(x)[0]
    torch.manual_seed(7)
    assert torch.equal(lstm(x)[0], first) and not torch.equal(first, second)
    lstm.eval()
    state = torch.get_rng_state()
    assert torch.equal(lstm(x)[0], lstm(x)[0]) and torch.equal(torch.get_rng_state(), state)
    plain = module().train()
    state = torch.get_rng_state()
    plain(x)
    assert torch.equal(torch.get_rng_state(), state)


class Model(torch.nn.Module):
    """A network whose other parts the compiler joins: it writes into y where it may."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.lstm = lstmcore.torch.LSTM(2, 3, backend="numpy", **arguments)
        self.head = torch.nn.Linear(3, 2)

    def forward(self, x: Any, lengths: Any = None) -> Any:
        y, (h, c) = self.lstm(x, lengths=lengths)
        return self.head(torch.relu(y) * 3.0 + h[-1]) + c.sum()


def gradients(model: Any, call: Any, x: Any, lengths: Any) -> list[Any]:
    torch.manual_seed(8)
    value = call(x, lengths)
    return [value.detach(), *torch.autograd.grad(value.square().sum(), [x, *model.parameters()])]


COMPILERS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.skipif(not shutil.which("g++"), reason="no g++"))]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_torch_compile_takes_it_whole(compiler: str) -> None:
    """Outputs and gradients are those without it; several sizes; tapes are freed."""
    gc.collect()
    before, rates = count_tapes(), RANDOM if compiler == "aot_eager" else {}
    model = Model(num_layers=2, **rates)
    compiled = torch.compile(model, fullgraph=True, backend=compiler, dynamic=True)
    for steps, lengths in ((5, None), (8, None), (5, torch.tensor([5, 2]))):
        x = leaf(steps, 2, 2, dtype=torch.float32)
        found, wanted = (gradients(model, call, x, lengths) for call in (compiled, model))
        for mine, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, None), model(x, None))
    gc.collect()
    assert count_tapes() == before


def test_the_operators_are_what_they_declare() -> None:
    """Schema, shapes without data, and registered gradients, as PyTorch checks them."""
    lstm, x = module(torch.float32), leaf(4, 2, 2, dtype=torch.float32)
    parameters, description = list(lstm.parameters()), lstm._description
    arguments = (description, True, x, None, None, torch.tensor([4, 2]), None, parameters)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operator, arguments, test_utils=checks)
    y, h, c, handle = operator(*arguments)
    backward = (description, handle, x.detach(), y.detach(), parameters, y.detach(), None, c.detach())
    torch.library.opcheck(lstm_backward, backward, test_utils=("test_schema", "test_faketensor"))


class Lightning(torch.nn.Module):
    """The parts of a LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        rates = {"dropout": 0.1, "zoneout_cell": 0.05, "recurrent_dropout": 0.1}
        self.lstm = lstmcore.torch.LSTM(2, 8, 2, batch_first=True, layer_norm=True, backend="numpy", **rates)
        self.head = torch.nn.Linear(8, 1)

    def training_step(self, batch: tuple[Any, Any, Any], index: int) -> Any:
        x, lengths, target = batch
        _, (h, _) = self.lstm(x, lengths=lengths)
        return torch.nn.functional.binary_cross_entropy_with_logits(self.head(h[-1])[:, 0], target)

    def configure_optimizers(self) -> tuple[Any, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)


def test_a_loop_as_lightning_runs_it() -> None:
    """Accumulated gradients, clipping, a schedule, a checkpoint that is read in the middle, no second weights."""
    torch.manual_seed(0)
    x, lengths = torch.randn(32, 12, 2), torch.randint(1, 13, (32,))
    inside = torch.arange(12) < lengths[:, None]
    target = ((x[:, :, 0] * inside).sum(1) > 0).float()
    batches = [(x[k : k + 8], lengths[k : k + 8], target[k : k + 8]) for k in range(0, 32, 8)]
    model = Lightning()
    losses: list[float] = []
    optimizer, schedule = model.configure_optimizers()
    for epoch in range(40):
        model.train()
        for index, batch in enumerate(batches):
            loss = model.training_step(batch, index) / 2
            loss.backward()
            losses.append(2 * loss.item())
            if index % 2:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        schedule.step()
        if epoch == 19:
            saved = (model.state_dict(), optimizer.state_dict(), schedule.state_dict())
            model = Lightning()
            model.load_state_dict(saved[0])
            optimizer, schedule = model.configure_optimizers()
            optimizer.load_state_dict(saved[1])
            schedule.load_state_dict(saved[2])
    model.eval()
    with torch.no_grad():
        final = model.training_step((x, lengths, target), 0).item()
    assert final < 0.3 < 0.6 < losses[0]
