"""`quant=gptq-native`, killed on its way: GPTQModel goes on from its last checkpoint and ends with the same weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from core.environments import ROOT
from core.files import write_json
from core.store import StageStore
from pipeline.checkpoints.facts import facts_from_folder
from pipeline.compress import registry, worker
from pipeline.compress.backends.gptqmodel import BLOCKS_BETWEEN_CHECKPOINTS
from tests.integration.conftest import Workplace, embedded_base

pytestmark = [pytest.mark.integration, pytest.mark.slow]
NUM_BLOCKS = 3 * BLOCKS_BETWEEN_CHECKPOINTS
PATIENCE_S = 300


@pytest.fixture(scope="module")
def base(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model with the real tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    real = embedded_base(StageStore(workplace.home / "store"))
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": NUM_BLOCKS, "vocab_size": 49152}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(real.path).save_pretrained(folder)
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, 40_000, size=(2, 64)))
    return folder


def start(base: Path, folder: Path) -> subprocess.Popen[bytes]:
    """The compress stage's process, in a group of its own."""
    method = registry.method("gptq-native")
    args = vars(method.resolve(registry.method_args("gptq-native", {}), facts_from_folder("base", base)))
    job = {"method": "gptq-native", "base": base, "output": folder / "model", "args": args, "seed": 0}
    folder.mkdir(exist_ok=True)
    write_json(folder / "job.json", job | {"calibration": base / "tokens.npy", "scratch": folder / "scratch"})
    command = [
        sys.executable,
        "-m",
        "core.jobs",
        worker.PROGRAM,
        str(folder / "job.json"),
        str(folder / "measured.json"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


@pytest.fixture
def killed(base: Path, tmp_path: Path) -> Path:
    """The folder of an attempt that was killed after its first checkpoint."""
    folder = tmp_path / "killed"
    process = start(base, folder)
    deadline = time.monotonic() + PATIENCE_S
    try:
        while not (folder / "scratch" / "gptqmodel" / "CURRENT").exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return folder


def next_block(folder: Path) -> int:
    """Where the newest checkpoint goes on."""
    store = folder / "scratch" / "gptqmodel"
    newest = json.loads((store / "CURRENT").read_bytes())["generations"][0]
    return int(json.loads((store / "objects" / newest).read_bytes())["cursor"])


def test_a_killed_attempt_goes_on_and_ends_with_the_same_weights(base: Path, killed: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    assert not (killed / "measured.json").exists()
    assert 0 < next_block(killed) < NUM_BLOCKS
    assert start(base, killed).wait(PATIENCE_S) == 0, (killed / "log").read_text()
    assert start(base, tmp_path / "whole").wait(PATIENCE_S) == 0, (tmp_path / "whole" / "log").read_text()
    again, whole = (load_file(folder / "model" / "model.safetensors") for folder in (killed, tmp_path / "whole"))
    assert again.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(again[name], whole[name])] == []
    quantized = [(folder / "log").read_text().count("gptq") for folder in (killed, tmp_path / "whole")]
    assert quantized[0] < quantized[1], "the second attempt did all blocks again"
