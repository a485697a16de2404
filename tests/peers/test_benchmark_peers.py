"""The peers of the benchmark compute the same LSTM, through their own calls, within the conformance budget."""

from __future__ import annotations

import pytest

from lstmcore_conformance.bench.jobs import MODES, Point
from lstmcore_conformance.bench.results import Outcome
from lstmcore_conformance.bench.run import Request, run
from lstmcore_conformance.bench.runtimes import PEERS
from lstmcore_conformance.bench.startup import start
from lstmcore_conformance.bench.timing import Plan
from lstmcore_conformance.bench.worker_client import Candidate


@pytest.mark.parametrize("peer", [name for name, peer in PEERS.items() if peer.packages and "inference" in peer.modes])
def test_a_peer_starts(peer: str) -> None:
    found = start(Candidate("peer", peer, 1))
    assert found.message == ""
    assert found.installed_bytes is not None
    assert found.installed_bytes > 10**7


@pytest.mark.parametrize("precision", ["float32", "float64", "float16", "bfloat16", "tf32"])
@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_conforms_in_every_mode(peer: str, precision: str) -> None:
    if precision == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    plan = Plan(rounds=3, seconds=0.001, repeats=0)
    points = (Point(6, 3, 5, 7), Point(3, 1, 8, 4))
    request = Request((), (peer,), modes=MODES, precisions=(precision,), points=points, plan=plan, calls=3)
    found = run(request)
    assert [one.job.mode for one in found.results[::2]] == [mode for mode in MODES if mode in PEERS[peer].modes]
    assert len(found.results) == len(points) * len(PEERS[peer].modes)
    for one in found.results:
        cannot = {
            "onnxruntime": one.job.call == "training" or precision != "float32",
            "tutorial": one.job.mode != "inference" or precision not in ("float32", "float64"),
        }.get(peer, precision == "tf32")
        # That a peer kept to its threads can only be judged of calls longer than these: JAX hands each to a thread.
        right = (Outcome.MEASURED, Outcome.NOISY, Outcome.THREADS)
        assert one.outcome in ((Outcome.UNSUPPORTED,) if cannot else right), one.message
