"""The learning curve as a picture (needs matplotlib, the extra ``plot``)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from lstmcore.extras import installing
from lstmcore.files import write_atomically
from lstmcore.training.history import Epoch, History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRAIN, _CHECK, _DRIFT, _MARK = "#4477aa", "#ee6677", "#228833", "#999999"


def require_matplotlib() -> None:
    """Raise ImportError with the install line if matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401 - only whether it is there
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise ImportError(f"plot: needs matplotlib, which is not installed: {installing('plot')}") from None


def check_picture(path: str | Path, name: str = "plot") -> str:
    """Return the format that the ending of `path`, which messages call `name`, chooses.

    Raises
    ------
    ImportError
        matplotlib is missing.
    ValueError
        An ending that matplotlib does not write.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    kind = Path(path).suffix.lstrip(".").lower()
    if kind not in (known := FigureCanvasAgg.get_supported_filetypes()):
        endings = ", ".join(sorted(known))
        raise ValueError(f"{name}: expected a file ending in one of {endings}; got {Path(path).name!r}")
    return kind


def plot_history(history: History, path: str | Path, *, title: str = "") -> None:
    """Draw losses, accuracies and the state drift over the epochs; the ending of `path` chooses the format.

    Raises
    ------
    ImportError
        matplotlib is missing.
    ValueError
        No epochs, or an ending that matplotlib does not write.

    Examples
    --------
    >>> epochs = [Epoch(n, 1 / n, None, 1.1 / n, None, 0.4, 0.2) for n in (1, 2, 3)]
    >>> plot_history(History(epochs, best=3), "curve.png", title="three epochs")
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    epochs = history.epochs
    if not epochs:
        raise ValueError("history: expected at least one epoch; got none")
    kind = check_picture(path)
    accuracies = epochs[0].accuracy is not None
    figure = Figure(figsize=(4.2 * (2 + accuracies), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, 2 + accuracies, squeeze=False)[0])
    _line(axes[0], epochs, "loss", "training", _TRAIN)
    _line(axes[0], epochs, "validation_loss", "validation", _CHECK)
    losses = [value for epoch in epochs for value in (epoch.loss, epoch.validation_loss) if value is not None]
    wide = 0 < 10 * min(losses) < max(losses)
    axes[0].set(title="Loss", yscale="log" if wide else "linear")
    if accuracies:
        _line(axes[1], epochs, "accuracy", "training", _TRAIN)
        _line(axes[1], epochs, "validation_accuracy", "validation", _CHECK)
        axes[1].set(title="Accuracy", ylim=(None, 1.01))
        axes[1].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _line(axes[-1], epochs, "drift", "mean |c(end) - c(start)|", _DRIFT)
    axes[-1].set(title="State drift")
    axes[-1].set_ylim(bottom=0)
    if history.drift_threshold is not None:
        axes[-1].axhline(history.drift_threshold, color=_MARK, linestyle="--", label="threshold")
    for panel in axes:
        _finish(panel, history)
    save_picture(figure, path, kind, title)


def save_picture(figure: Figure, path: str | Path, kind: str, title: str) -> None:
    """Give a figure its title, which may be empty, and write it in the format `kind`."""
    if title:
        figure.suptitle(title, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=150)
    write_atomically(path, buffer.getvalue())


def _line(panel: Axes, epochs: list[Epoch], name: str, label: str, color: str) -> None:
    """Draw an attribute of the epochs, if all of them have it."""
    values = [getattr(epoch, name) for epoch in epochs]
    if None not in values:
        numbers = [epoch.number for epoch in epochs]
        panel.plot(numbers, values, label=label, color=color, linewidth=1.6, marker="." if len(values) < 15 else "")


def _finish(panel: Axes, history: History) -> None:
    """Mark the best epoch, and give a panel its axes, grid and legend."""
    from matplotlib.ticker import MaxNLocator

    if history.best is not None:
        panel.axvline(history.best, color=_MARK, linestyle=":", linewidth=1.2, label=f"best epoch ({history.best})")
    panel.set(xlabel="epoch", xlim=(0.5, len(history.epochs) + 0.5))
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize="small")
