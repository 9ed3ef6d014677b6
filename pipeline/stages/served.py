"""What quality and load have in common: a checkpoint behind one engine on one machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.config import EngineConfig
from pipeline.serve.server import ServedModel
from pipeline.stages.graph import Effects, Stage
from pipeline.types import Artifact, Machine


@dataclass(frozen=True)
class Served:
    """A variant as it is served."""

    checkpoint: Stage[Artifact]
    engine: EngineConfig
    machine: Machine
    python: Path
    """Interpreter of the serving environment."""
    method: str
    num_parameters: int
    name: str
    """How messages name it: `model/variant`."""

    def start(self, effects: Effects) -> ServedModel:
        """Its server, which starts on first use and stays until another one is asked for."""
        return effects.served(effects.result(self.checkpoint), self.engine, self.machine, self.name)
