"""Every plug-in, one visible table per kind. Reading the tables loads no torch: a method's tools are imported by the
method's own `compress`, in a process of its own.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from core.errors import ConfigError, Problem, closest
from pipeline.compress.memory import CalibrationSize, Memory
from pipeline.types import Machine, ModelFacts

COMPRESS = {
    "none": "pipeline.compress.methods.none",
    "rtn-int8": "pipeline.compress.methods.rtn_int8",
    "rtn-int4": "pipeline.compress.methods.rtn_int4",
    "int8": "pipeline.compress.methods.int8",
    "int8-weight-only": "pipeline.compress.methods.int8_weight_only",
    "gptq": "pipeline.compress.methods.gptq",
    "gptq-native": "pipeline.compress.methods.gptq_native",
    "awq": "pipeline.compress.methods.awq",
    "awq-native": "pipeline.compress.methods.awq_native",
    "fp8": "pipeline.compress.methods.fp8",
    "fp8-static": "pipeline.compress.methods.fp8_static",
    "nf4": "pipeline.compress.methods.nf4",
    "llm-int8": "pipeline.compress.methods.llm_int8",
    "mixed": "pipeline.compress.methods.mixed",
    "external": "pipeline.compress.methods.external",
}
"""Compression method -> the module that has its `METHOD`."""
ALIASES = {"as-is": "external"}
"""Former name of a method -> its name. Both give the same plan, the same stages and the same label."""
METHODS_GROUP = "parsimony.methods"
"""Entry points of other packages: the method's name -> the module that has its `METHOD`. Their choice's file, which
makes the method usable as `quant=NAME`, comes from an entry point of the group `parsimony.conf`."""


@cache
def known_methods() -> dict[str, str]:
    """Every compression method, those of other packages included -> the module that has its `METHOD`.

    Raises:
        ConfigError: a package brings a method whose name is taken.

    """
    found = dict(COMPRESS)
    for point in entry_points(group=METHODS_GROUP):
        if found.setdefault(point.name, point.value) != point.value:
            package = point.dist.name if point.dist is not None else point.value
            raise ConfigError(
                f"package {package} brings a method '{point.name}', which is {found[point.name]} already\n"
                f"  -> another name for its entry point in the group {METHODS_GROUP}"
            )
    return found


@dataclass(frozen=True)
class CompressJob:
    """What a method's process is told."""

    base: Path
    """The checkpoint to compress."""
    output: Path
    """The folder to write the new checkpoint into."""
    args: Mapping[str, Any]
    """The method's own settings, checked."""
    calibration: Path | None
    """Token ids for calibration: `.npy`, int64, shape (num_samples, length)."""
    seed: int
    scratch: Path | None = None
    """A folder that outlives a killed attempt, for methods whose library can go on from it."""


@dataclass(frozen=True)
class Method:
    """One way to make a cheaper checkpoint."""

    name: str
    args: type
    """Dataclass of its settings: the keys of `quant=` beside `method`."""
    compress: Callable[[CompressJob], None] | None
    """Writes the new checkpoint; None where there is nothing to make: the baseline, and external checkpoints."""
    needs_calibration: bool = False
    devices: Sequence[str] = ("cpu", "cuda")
    tools: Sequence[str] = ()
    """Packages whose versions are part of the artifact's identity."""
    check: Callable[[Any, ModelFacts, Machine], list[Problem]] = lambda args, facts, machine: []
    """Problems that can be seen before anything is loaded."""
    resolve: Callable[[Any, ModelFacts], Any] = lambda args, facts: args
    """The settings with automatic ones made definite: they are what identifies the artifact."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Device -> why the method does not run there."""
    nearest: str = ""
    """The method to take where this one does not run."""
    products: Sequence[str] = ()
    """What its layers multiply with integer codes: `w4a16`, `w8a16` or `w8a8`."""
    splits: bool = True
    """Whether vLLM can split the checkpoint over several GPUs."""
    resumable: bool = False
    """Whether a killed attempt goes on from its scratch folder."""
    memory: Callable[[ModelFacts, Machine, CalibrationSize], Memory] | None = None
    """Estimate of the peak memory; None where nothing is made."""


def method(name: str) -> Method:
    """The compression method of this name.

    Raises:
        ConfigError: there is none; the message lists those there are.

    """
    name, known = ALIASES.get(name, name), known_methods()
    if name not in known:
        raise ConfigError(f"quant.method={name}: unknown method{closest(name, known)}; known: {', '.join(known)}")
    found: Method = importlib.import_module(known[name]).METHOD
    return found


def is_external(quant: Mapping[str, Any]) -> bool:
    """Whether a `quant=` choice takes an external checkpoint as the candidate."""
    name = str(quant.get("method", "none"))
    return ALIASES.get(name, name) == "external"


def method_args(name: str, values: Mapping[str, Any]) -> Any:
    """The method's checked settings.

    Raises:
        ConfigError: an unknown key, or a value of the wrong kind.

    """
    args = method(name).args
    known = {field.name: field for field in dataclasses.fields(args)}
    for key, value in values.items():
        if key not in known:
            listed = ", ".join(known) or "none"
            raise ConfigError(f"quant.{key}: method '{name}' has no such key{closest(key, known)}; known: {listed}")
        default = known[key].default
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            continue
        if default is not dataclasses.MISSING and default is not None and type(value) is not type(default):
            kind = type(default).__name__
            raise ConfigError(f"quant.{key}={value!r}: must be of kind {kind}, as in quant.{key}={default!r}")
    return args(**values)
