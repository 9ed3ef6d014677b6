"""The model as it is: every variant's baseline."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.compress.registry import Method


@dataclass(frozen=True)
class Args:
    """It has no settings."""


METHOD = Method(name="none", args=Args, compress=None)
