"""An external checkpoint as the candidate: `model=NAME model.path=FOLDER quant=external`.

auto-gptq, autoawq, GPTQModel, AutoRound, llm-compressor and bitsandbytes all write their format into the checkpoint's
own config.json. vLLM reads it there, and so do we. `model=NAME` is the model that it was made from: its baseline.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.compress.registry import Method


@dataclass(frozen=True)
class Args:
    """It has no settings: everything is read from the checkpoint."""


METHOD = Method(name="external", args=Args, compress=None)
