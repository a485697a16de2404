"""The classifier of PyTorch: its LSTM, which cuDNN runs on a GPU, its readout, loss, autograd and optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lstmcore.backend import Array
from lstmcore_conformance.bench.classifiers import MOMENTUM, RATE, Arrays, Batch, Classifier, Start
from lstmcore_conformance.oracle.naive import NaiveBackend


class TorchClassifier(Classifier):
    """The model and the steps of `OwnClassifier` as a user of PyTorch writes them.

    The second bias of each gate stays 0: two that are trained move twice as far as our one.

    Parameters
    ----------
    precision
        ``"tf32"`` allows TF32; ``"float32"`` does not.
    start
        What ours starts from.
    arrays
        Whether batches are tensors of the host, which each step copies to the device and whose loss it reads.
    device
        PyTorch's name of the device.
    """

    def __init__(self, precision: str, start: Start, arrays: Arrays, device: str) -> None:
        self.tf32, self.arrays, self.device = precision == "tf32", arrays, device
        ours, readout = start.make("float32", NaiveBackend())
        sizes = (ours.input_size, ours.stack.hidden_size)
        self.lstm: Any = torch.nn.LSTM(*sizes, bidirectional=ours.stack.num_directions == 2, device=device)
        self.lstm.load_state_dict({name: torch.tensor(value) for name, value in ours.to_torch().items()})
        for name, value in self.lstm.named_parameters():
            value.requires_grad_("bias_hh" not in name)
        self.readout: Any = torch.nn.Linear(ours.output_width, start.classes).to(device)
        self.readout.load_state_dict({name: torch.tensor(value) for name, value in readout.items()})
        trained = [value for one in (self.lstm, self.readout) for value in one.parameters() if value.requires_grad]
        self.optimizer = torch.optim.SGD(trained, RATE, MOMENTUM)

    def take(self, batches: Sequence[Batch]) -> list[Batch]:
        """See `Classifier.take`; classes are numbers here."""
        found = []
        for batch in batches:
            x, classes = torch.from_numpy(batch.x), torch.from_numpy(batch.wanted.argmax(axis=1))
            if self.arrays == "device":
                x, classes = x.to(self.device), classes.to(self.device)
            found.append(Batch(x, batch.lengths, classes))
        return found

    def learn(self, batch: Batch) -> Array:
        """See `Classifier.learn`."""
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.tf32
        x, classes = batch.x.to(self.device), batch.wanted.to(self.device)
        if min(batch.lengths) < len(x):
            x = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(batch.lengths), enforce_sorted=False)
        _, (h, _) = self.lstm(x)
        loss = torch.nn.functional.cross_entropy(self.readout(torch.cat(tuple(h), dim=1)), classes)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
        self.optimizer.step()
        return loss.detach().cpu() if self.arrays == "host" else loss.detach()

    def read(self, loss: Array) -> float:
        """See `Classifier.read`."""
        return float(loss)
