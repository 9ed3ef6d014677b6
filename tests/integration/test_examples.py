"""The examples run as they are: with real commands, and as a plan alone where a GPU or minutes would be needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from core.environments import set_defaults

pytestmark = pytest.mark.integration
set_defaults()
ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "desc_act": False},
}
"""config.json of a GPTQ checkpoint of the embedded model: all that a plan reads, beside the weights' headers."""


def example(name: str, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PARSIMONY_LEDGER_URL"}
    environment |= {"PARSIMONY": f"{sys.executable} -m pipeline", "PYTHONPATH": str(ROOT)}
    command = [str(EXAMPLES / name), *arguments]
    return subprocess.run(
        command, cwd="/", env=environment, capture_output=True, text=True, check=False, timeout=timeout_s
    )


def test_every_example_is_run_here_and_says_what_it_does() -> None:
    tested = Path(__file__).read_text()
    for path in EXAMPLES.iterdir():
        assert f'example("{path.name}"' in tested, f"{path.name} is not run"
        assert os.access(path, os.X_OK), f"{path.name} is not executable"
        header = path.read_text().split("set -euo")[0]
        assert "# Why: " in header, path.name
        assert "#   examples/" in header, path.name


def test_two_gpus_are_planned_and_priced_on_any_machine() -> None:
    done = example("two-gpus.sh", "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "h100-80gb, 2 GPUs" in done.stdout
    assert "none (baseline), awq" in done.stdout


def test_an_external_checkpoint_is_planned_beside_its_baseline(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    save_file({"model.norm.weight": np.ones(576, dtype=np.float16)}, tmp_path / "model.safetensors")
    done = example("external-checkpoint.sh", "smollm2-135m-q4_1", str(tmp_path), "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "none (baseline), " in done.stdout
    assert ":gptq" in done.stdout
    (tmp_path / "config.json").write_text(json.dumps({**SHAPE, "num_hidden_layers": 12}))
    done = example("external-checkpoint.sh", "smollm2-135m-q4_1", str(tmp_path), "dry_run=true")
    assert done.returncode == 2
    assert "num_layers 12 against 30" in done.stderr


def test_an_own_suite_is_planned_and_lm_eval_reads_it() -> None:
    done = example("own-suite.sh", "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "support" in done.stdout
    program = (
        "import json, sys; from lm_eval.tasks import TaskManager;"
        "task = TaskManager(include_path=sys.argv[1], include_defaults=False).load('support')['tasks']['support'];"
        "docs = list(task.validation_docs());"
        "print(json.dumps([[task.doc_to_text(d), task.doc_to_choice(d), task.doc_to_target(d)] for d in docs]))"
    )
    folder = ROOT / "outputs" / "own-suite"
    read = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True, timeout=120
    )
    docs = json.loads(read.stdout.splitlines()[-1])
    assert len(docs) == 6
    for question, choices, answer in docs:
        assert question.startswith("Question: ")
        assert len(choices) == 3
        assert choices[answer]


def test_a_budget_and_an_approval_stop_a_run() -> None:
    done = example("budget-with-approval.sh")
    assert done.returncode == 0, done.stdout + done.stderr
    parts = f"\n{done.stdout}".split("\n--- ")
    assert "limit 100.00" in parts[1]
    assert "exit code 3" in parts[2]
    assert "pending" in parts[2]
    assert "approved by the-colleague" in parts[3]
    assert "exit code 4" in parts[4]
    assert "limit 5000.00" in parts[5]
    assert "request 1 waits" in done.stderr
    assert "alembic" not in done.stdout + done.stderr
    assert "research-monthly" in done.stderr
