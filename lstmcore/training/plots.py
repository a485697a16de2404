"""The learning curve as a picture (needs matplotlib, the extra ``plot``)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from lstmcore.files import write_atomically
from lstmcore.training.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TRAIN, _CHECK, _DRIFT, _MARK = "#4477aa", "#ee6677", "#228833", "#999999"


def require_matplotlib() -> None:
    """Raise ImportError with the install line where matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401 - only whether it is there
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise ImportError("plot: needs matplotlib, which is not installed: pip install 'lstmcore[plot]'") from None


def check_picture(path: str | Path) -> str:
    """The format that the ending of `path` chooses.

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
        raise ValueError(f"plot: expected a file ending in one of {', '.join(sorted(known))}; got {Path(path).name!r}")
    return kind


def plot_history(history: History, path: str | Path, *, title: str = "") -> None:
    """Draw losses, accuracies and the state drift over the epochs; the ending of `path` chooses the format.

    Raises
    ------
    ImportError
        matplotlib is missing.
    ValueError
        No epochs, or an ending that matplotlib does not write.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    epochs = history.epochs
    if not epochs:
        raise ValueError("history: expected at least one epoch; got none")
    kind = check_picture(path)
    accuracies = epochs[0].accuracy is not None
    figure = Figure(figsize=(4.2 * (2 + accuracies), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, 2 + accuracies, squeeze=False)[0])
    numbers = [epoch.number for epoch in epochs]

    def line(panel: Axes, name: str, label: str, color: str) -> None:
        values = [getattr(epoch, name) for epoch in epochs]
        if None not in values:
            panel.plot(numbers, values, label=label, color=color, linewidth=1.6, marker="." if len(values) < 15 else "")

    line(axes[0], "loss", "training", _TRAIN)
    line(axes[0], "validation_loss", "validation", _CHECK)
    losses = [value for epoch in epochs for value in (epoch.loss, epoch.validation_loss) if value is not None]
    wide = 0 < 10 * min(losses) < max(losses)
    axes[0].set(title="Loss", yscale="log" if wide else "linear")
    if accuracies:
        line(axes[1], "accuracy", "training", _TRAIN)
        line(axes[1], "validation_accuracy", "validation", _CHECK)
        axes[1].set(title="Accuracy", ylim=(None, 1.01))
        axes[1].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    line(axes[-1], "drift", "mean |c(end) - c(start)|", _DRIFT)
    axes[-1].set(title="State drift")
    axes[-1].set_ylim(bottom=0)
    if history.drift_threshold is not None:
        axes[-1].axhline(history.drift_threshold, color=_MARK, linestyle="--", label="threshold")
    for panel in axes:
        if history.best is not None:
            panel.axvline(history.best, color=_MARK, linestyle=":", linewidth=1.2, label=f"best epoch ({history.best})")
        panel.set(xlabel="epoch", xlim=(0.5, len(epochs) + 0.5))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize="small")
    if title:
        figure.suptitle(title, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=150)
    write_atomically(path, buffer.getvalue())
