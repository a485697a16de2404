"""Tell how training on several ranks scales: a model of one step, fitted to measurements, and a simulation of it.

Run ``python examples/scaling_model.py``; ``--picture scaling.png`` also draws it and needs the extra ``plot``.
docs/scaling.md says where the numbers are from and what they come to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import numpy as np

from lstmcore.training.data_parallel import share_rows

#: Made by ``python -m lstmcore_conformance.bench.rank_efficiency numba --json``.
MEASURED: Final = Path(__file__).parents[1] / "docs" / "benchmarks" / "ranks.json"
RANKS: Final = (8, 64, 1024)
ROWS: Final = 64  # of a rank, where each rank more brings more rows
ALL_ROWS: Final = 4096  # of a step, where they are shared out
STEPS: Final = 50  # of the longest sequence; the shortest has a quarter
NOISE: Final = 0.02  # standard deviation of the time of a rank, as a share; assumed
DRAWS: Final = 8  # steps that are simulated


class Network(NamedTuple):
    """A network: seconds of an empty message, and bytes a second in each direction of a rank."""

    name: str
    latency: float
    bandwidth: float

    def ring(self, ranks: int, size: float) -> float:
        """Return the seconds of a ring allreduce: each rank sends 2 (R - 1) messages of 1/R of the buffer."""
        return 2 * (ranks - 1) * (self.latency + size / ranks / self.bandwidth)


class Layer(NamedTuple):
    """An LSTM with as many inputs as hidden units, in float32."""

    hidden: int

    @property
    def work(self) -> float:
        """Operations for a row and step in training: forward, and twice as many backward."""
        return 24.0 * self.hidden * 2 * self.hidden

    @property
    def size(self) -> float:
        """Bytes of the gradient."""
        return 4.0 * 4 * self.hidden * (2 * self.hidden + 1)


class Rank(NamedTuple):
    """A rank: seconds of a step without rows, and operations a second."""

    overhead: float
    rate: float

    def step(self, layer: Layer, row_steps: Any) -> Any:
        """Return the seconds of forward and backward for a sum of lengths."""
        return self.overhead + layer.work * row_steps / self.rate


NETWORKS: Final = (Network("Ethernet 10 Gbit/s", 48e-6, 1.1e9), Network("InfiniBand HDR", 2e-6, 21e9))
LAYERS: Final = (Layer(128), Layer(512))
#: MB -> ms: ring allreduce of 128 ranks on 4 nodes (github.com/openucx/ucc/pull/1082).
UCC: Final = {1: 2.288, 2: 2.656, 4: 4.380, 8: 11.23, 16: 26.98, 32: 50.10, 64: 100.6, 128: 200.8}


def fit(x: Any, seconds: Any) -> tuple[float, float, float]:
    """Return a >= 0 and b of ``a + b x`` with the least relative errors, and the largest of these."""
    x, seconds = np.asarray(x, float), np.asarray(seconds, float)
    for columns in (np.stack([np.ones_like(x), x]), np.stack([0 * x, x])):
        (a, b), *_ = np.linalg.lstsq((columns / seconds).T, np.ones_like(x), rcond=None)
        if a >= 0:
            break
    return float(a), float(b), float(np.abs((a + b * x) / seconds - 1).max())


def fit_rank(points: Sequence[dict[str, Any]]) -> tuple[Rank, float]:
    """Return the rank that one thread was, by its processor time, and the largest relative error over the points."""
    work = [24.0 * T * N * H * (I + H) for T, N, I, H in (point["point"] for point in points)]
    overhead, inverse, error = fit(work, [np.median(point["cpu"]["one"]) for point in points])
    return Rank(overhead, 1 / inverse), error


def fit_ring(name: str, ranks: int, sums: dict[float, float]) -> tuple[Network, float]:
    """Return the network behind bytes -> seconds of a ring allreduce, and the largest relative error."""
    a, b, error = fit([*sums], [*sums.values()])
    messages = 2 * (ranks - 1)
    return Network(name, a / messages, messages / ranks / b), error


def model(rank: Rank, layer: Layer, network: Network, ranks: int, rows: float) -> float:
    """Return the seconds of a step, with `rows` a rank, of 5/8 of the steps on average; the slowest rank counts."""
    straggling = 1 + NOISE * np.sqrt(2 * np.log(ranks))
    return float(rank.step(layer, rows * STEPS * 5 / 8) * straggling + network.ring(ranks, layer.size))


def simulate(rank: Rank, layer: Layer, network: Network, ranks: int, rows: int, seed: int = 0) -> float:
    """Return the mean seconds of a step in which every rank and every message takes its own time.

    Lengths are drawn, and shared out as `Trainer` does. A rank waits for its neighbour in the ring alone, and a message
    takes 0.5 to 1.5 times the latency.
    """
    random, total = np.random.default_rng(seed), 0.0
    for _ in range(DRAWS):
        lengths = random.integers(STEPS // 4, STEPS + 1, ranks * rows)
        sums = np.array([lengths[share].sum() for share in share_rows(lengths, ranks)])
        clock = rank.step(layer, sums) * (1 + NOISE * random.standard_normal(ranks))
        for _ in range(2 * (ranks - 1)):
            message = network.latency * random.uniform(0.5, 1.5, ranks) + layer.size / ranks / network.bandwidth
            clock = np.maximum(clock, np.roll(clock, 1)) + message
        total += clock.max()
    return total / DRAWS


def efficiency(rank: Rank, layer: Layer, seconds: float, rows: int, ranks: int = 1) -> float:
    """Return the time of a step with these rows on one rank over `ranks` times that of all."""
    return float(rank.step(layer, rows * STEPS * 5 / 8) / ranks / seconds)


def used(rank: Rank, layer: Layer, seconds: float, ranks: int, shared: bool) -> float:
    """Return the efficiency where ALL_ROWS are shared, or where each rank brings ROWS."""
    return efficiency(rank, layer, seconds, ALL_ROWS, ranks) if shared else efficiency(rank, layer, seconds, ROWS)


def last_paying(rank: Rank, layer: Layer, network: Network) -> int:
    """Return the most ranks, in powers of two, that are at least half used when they share ALL_ROWS rows."""
    paying = 1
    for ranks in (2**power for power in range(1, 13)):
        if used(rank, layer, model(rank, layer, network, ranks, ALL_ROWS / ranks), ranks, shared=True) < 0.5:
            break
        paying = ranks
    return paying


def draw(rank: Rank, path: str) -> None:
    """Draw the efficiency over ranks, modelled as lines and simulated as dots, for both kinds of scaling."""
    from matplotlib.figure import Figure

    figure = Figure((9, 4), layout="constrained")
    ranks = tuple(2**power for power in range(13))
    for axes, shared in zip(figure.subplots(1, 2, sharey=True), (False, True), strict=True):
        for colour, (layer, network) in enumerate((layer, network) for layer in LAYERS for network in NETWORKS):
            lines = [model(rank, layer, network, count, ALL_ROWS / count if shared else ROWS) for count in ranks]
            dots = [simulate(rank, layer, network, count, ALL_ROWS // count if shared else ROWS) for count in RANKS]
            for counts, seconds, style in ((ranks, lines, "-"), (RANKS, dots, "o")):
                share = [used(rank, layer, took, count, shared) for count, took in zip(counts, seconds, strict=True)]
                label = f"H = {layer.hidden}, {network.name}" if style == "-" else None
                axes.semilogx(counts, share, style, base=2, color=f"C{colour}", label=label)
        axes.axhline(0.5, color="0.7", linewidth=1)
        axes.set(xlabel="ranks", title=f"{ALL_ROWS:,} rows in all" if shared else f"{ROWS} rows a rank", ylim=(0, 1.02))
    figure.axes[0].set_ylabel("efficiency")
    figure.axes[0].legend(loc="lower left", fontsize=8)
    figure.savefig(path, dpi=110)


def tell_fits(measured: dict[str, Any]) -> Rank:
    """Print what was fitted, and how well; return the rank of this machine."""
    points = measured["points"]
    rank, error = fit_rank(points)
    click.echo(
        f"one thread: {rank.overhead * 1e3:.1f} ms a step and {rank.rate / 1e9:.0f} GFLOP/s, error up to {error:.0%}"
    )
    sums = {float(size): min(times) for size, times in points[0]["sums"].items()}  # the least that other work disturbs
    ucc = {float(size << 20): milliseconds * 1e-3 for size, milliseconds in UCC.items()}
    for name, ranks, times in (("2 ranks here", 2, sums), ("128 ranks, UCC", 128, ucc)):
        network, error = fit_ring(name, ranks, times)
        per = f"{network.latency * 1e6:.1f} us a message and {network.bandwidth / 1e9:.2f} GB/s"
        click.echo(f"{name}: {per}, error up to {error:.0%}")
    return rank


@click.command(help=__doc__)
@click.option("--picture", metavar="FILE", help="Draw the efficiency.")
def main(picture: str | None) -> None:
    """Print the fits, the efficiency by the model and by the simulation, and where it stops to pay."""
    rank = tell_fits(json.loads(MEASURED.read_text("utf-8")))
    click.echo("\nH, network, ranks: efficiency by model and simulation, 64 rows a rank | 4,096 rows in all")
    for layer in LAYERS:
        for network in NETWORKS:
            for ranks in RANKS:
                told = []
                for shared, rows in ((False, ROWS), (True, ALL_ROWS // ranks)):
                    ways = (way(rank, layer, network, ranks, rows) for way in (model, simulate))
                    told.append(" ".join(f"{used(rank, layer, seconds, ranks, shared):.2f}" for seconds in ways))
                click.echo(f"{layer.hidden:3}, {network.name}, {ranks:4}: {' | '.join(told)}")
            most = last_paying(rank, layer, network)
            click.echo(f"{layer.hidden:3}, {network.name}: {ALL_ROWS:,} rows pay up to {most} ranks")
    if picture is not None:
        draw(rank, picture)


if __name__ == "__main__":
    main()
