"""The right answers, and how far from them a backend may be."""

from __future__ import annotations

from lstmcore_conformance.oracle.evaluation import Arrays, draft, forget, forward, gradients, moved, parts, tangents

__all__ = ["Arrays", "draft", "forget", "forward", "gradients", "moved", "parts", "tangents"]
