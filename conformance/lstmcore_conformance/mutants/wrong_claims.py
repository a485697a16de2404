"""Backends that declare, refuse or report something that is not true."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lstmcore.backend import Backend, Capabilities, Forward, Kernel, UnsupportedError
from lstmcore.config import LSTMConfig
from lstmcore.precision import Precision, get_precision
from lstmcore_conformance.mutants.construction import backend_of, fault
from lstmcore_conformance.oracle.naive import NaiveBackend, NaiveKernel


@fault("contract.jvp_claimed", "jvp is declared and not implemented", "jvp.switches")
class _JvpClaimed(NaiveKernel):
    def _jvp(self, *args: Any) -> tuple[Forward, Forward]:
        raise NotImplementedError("jvp")


@fault("contract.jvp_refused", "jvp is declared and refused", "refusals.calls")
class _JvpRefused(NaiveKernel):
    def _jvp(self, *args: Any) -> tuple[Forward, Forward]:
        raise UnsupportedError("jvp: not at this size")


@fault("contract.peephole_refused", "peepholes are declared, and refused when they compile", "refusals.features")
def _peephole_refused() -> Backend:
    class B(NaiveBackend):
        def _compile(self, config: LSTMConfig, precision: Precision) -> Kernel:
            if config.peephole:
                raise UnsupportedError("peephole: not together with this precision")
            return super()._compile(config, precision)

    return B()


@fault("contract.peephole_claimed", "peepholes are declared and not implemented", "forward.switches")
def _peephole_claimed() -> Backend:
    class B(NaiveBackend):
        def _compile(self, config: LSTMConfig, precision: Precision) -> Kernel:
            if config.peephole:
                raise NotImplementedError("peephole")
            return super()._compile(config, precision)

    return B()


@fault("contract.refused_always", "a declared switch is refused in every precision", "declared.switches")
def _refused_always() -> Backend:
    class B(NaiveBackend):
        def refusal(self, config: LSTMConfig, precision: Precision) -> str | None:
            return "not now" if config.layer_norm else super().refusal(config, precision)

    return B()


@fault("contract.silent_precision", "a precision that is not declared runs in another one", "refusals.precisions")
def _silent_precision() -> Backend:
    class B(NaiveBackend):
        def refusal(self, config: LSTMConfig, precision: Precision) -> str | None:
            return None

    return B()


@fault("contract.silent_feature", "a switch that is not declared is ignored", "refusals.features")
def _silent_feature() -> Backend:
    class B(NaiveBackend):
        def capabilities(self) -> Capabilities:
            declared = super().capabilities()
            return replace(declared, features=declared.features - {"peephole"})

        def refusal(self, config: LSTMConfig, precision: Precision) -> str | None:
            return None if config.peephole else super().refusal(config, precision)

    return B()


@fault("contract.silent_lengths", "lengths are not declared, and ignored", "refusals.calls")
def _silent_lengths() -> Backend:
    class K(NaiveKernel):
        def _declared(self, what: str, used: bool) -> None:
            return None

    class B(NaiveBackend):
        def capabilities(self) -> Capabilities:
            declared = super().capabilities()
            return replace(declared, features=declared.features - {"lengths"})

    return backend_of(K, B)


@fault("contract.infinite_bound", "a bound that overflows float32 is taken", "errors.numbers")
def _infinite_bound() -> Backend:
    class B(NaiveBackend):
        def compile(self, config: LSTMConfig, precision: Precision | str) -> Kernel:  # type: ignore[misc]
            return self._compile(config, get_precision(precision))

    return B()


@fault("contract.receipt_of_another", "the receipt names another backend", "receipts.true")
class _ReceiptOfAnother(NaiveKernel):
    def receipt(self, steps: int | None = None, batch: int | None = None) -> Any:
        return replace(super().receipt(steps, batch), backend="fast")


@fault("hidden.reference_in_disguise", "the reference runs, and the receipt says that it is fast", "receipts.fallback")
class _ReferenceInDisguise(NaiveKernel):
    def receipt(self, steps: int | None = None, batch: int | None = None) -> Any:
        receipt = super().receipt(steps, batch)
        return type(receipt)(receipt.backend, receipt.device, receipt.precision, "fused", "the fast path")
