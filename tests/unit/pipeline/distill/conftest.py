"""A tiny model for every test of distillation."""

import os
from pathlib import Path

import pytest

from tests.unit.pipeline.distill.tiny_model import write_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 4 layers, hidden size 64, 128 tokens."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(1)
    return write_model(tmp_path_factory.mktemp("tiny") / "model", num_layers=4)
