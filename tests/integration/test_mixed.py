"""`quant=mixed` on the real 135M model: the files keep to the budget, and vLLM serves what transformers computes."""

import json
import re
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from core.environments import serving_python
from core.files import read_json
from core.store import StageStore
from pipeline.checkpoints.facts import facts_from_folder, tensor_headers
from pipeline.compress.allocate import fused_groups
from pipeline.compress.methods.mixed import METHOD, Args, stored_bits
from pipeline.compress.registry import CompressJob
from pipeline.config import CalibConfig, EngineConfig
from pipeline.plan.machine import find_machine
from pipeline.plan.resolve import planned_engine
from pipeline.serve.server import ServedModel
from pipeline.types import Artifact
from tests.integration.conftest import Workplace, embedded_base
from tests.unit.pipeline.data_tools import calibration_tokens

pytestmark = [pytest.mark.integration, pytest.mark.slow]
STORED_AS = {"w4a16": "weight_packed", "w8a8": "weight", "16bit": "weight"}
STORED_TYPE = {"w4a16": "I32", "w8a8": "I8", "16bit": "BF16"}
PROMPT = "Water freezes at zero degrees Celsius and boils at one hundred degrees. The capital of France is Paris, and"


def compressed(base: Path, folder: Path, tokens: np.ndarray, **args: object) -> Path:
    np.save(folder / "tokens.npy", tokens, allow_pickle=False)
    METHOD.compress(CompressJob(base, folder / "model", vars(Args(**args)), folder / "tokens.npy", seed=0))
    return folder / "model"


def config_group_of(module: str, config: dict) -> str:
    """The name of the only config group whose patterns match, or 16bit."""
    groups = config["quantization_config"]["config_groups"]
    found = [
        (group["weights"]["num_bits"], group["format"])
        for group in groups.values()
        if any(re.match(target.removeprefix("re:"), module) for target in group["targets"])
    ]
    assert len(found) <= 1, f"{module} is in {len(found)} groups"
    if not found:
        assert module in config["quantization_config"]["ignore"]
        return "16bit"
    return {(4, "pack-quantized"): "w4a16", (8, "int-quantized"): "w8a8"}[found[0]]


def check_files(folder: Path) -> dict[str, set[str]]:
    """Every projection is stored as its group's level says, and the report, the config and the bytes agree."""
    config, report = read_json(folder / "config.json"), read_json(folder / "sensitivity.json")
    tensors = {name: found for path in folder.glob("*.safetensors") for name, found in tensor_headers(path).items()}
    levels = {row["group"]: row["level"] for row in report["groups"]}
    kinds: dict[str, set[str]] = {}
    for group in fused_groups(facts_from_folder("x", folder)):
        for name in group.shapes:
            module = f"model.layers.{group.layer}.{group.parent}.{name}"
            level = config_group_of(module, config)
            assert level == levels[group.name]
            assert tensors[f"{module}.{STORED_AS[level]}"]["dtype"] == STORED_TYPE[level]
            assert tensors.get(f"{module}.weight_scale", {}).get("dtype") == (None if level == "16bit" else "BF16")
            kinds.setdefault(level, set()).add(group.name)
    counted = sum(row["num_bits"][row["level"]] for row in report["groups"])
    assert stored_bits(folder) == counted
    assert report["bits_per_weight"] == counted / report["num_weights"]
    assert report["bits_per_weight"] <= report["target_bits"]
    return kinds


@pytest.fixture(scope="module")
def store(workplace: Workplace) -> StageStore:
    return StageStore(workplace.home / "store")


@pytest.fixture(scope="module")
def base(store: StageStore) -> Artifact:
    return embedded_base(store)


@pytest.fixture(scope="module")
def tokens(base: Artifact, store: StageStore) -> np.ndarray:
    calib = CalibConfig(sources=["squad"], num_samples=2, length=128)
    return np.load(calibration_tokens(calib, base, store).folder / "tokens.npy", allow_pickle=False)


@pytest.fixture(scope="module")
def folder(base: Artifact, tokens: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 135M model in five bits a weight."""
    return compressed(base.path, tmp_path_factory.mktemp("mixed"), tokens, target_bits=5.0, sensitivity_tokens=64)


def test_the_budget_is_spent_and_kept(folder: Path) -> None:
    kinds = check_files(folder)
    assert len(kinds["w4a16"]) > 60
    assert len(kinds) > 1
    assert read_json(folder / "config.json")["quantization_config"]["format"] == "mixed-precision"
    assert read_json(folder / "sensitivity.json")["bits_per_weight"] > 4.95


def test_the_report_holds_every_measurement(folder: Path) -> None:
    report = read_json(folder / "sensitivity.json")
    assert report["measured_on"] == {"num_sequences": 1, "length": 64, "seed": 0}
    assert len(report["groups"]) == 120
    for row in report["groups"]:
        assert set(row["kl"]) == set(row["kl_standard_error"]) == {"w4a16", "w8a8"}
        assert row["kl"]["w4a16"] > 0
    chosen = [row["kl"].get(row["level"], 0.0) for row in report["groups"]]
    assert report["sum_of_kl"] == pytest.approx(sum(chosen))
    assert sum(chosen) < sum(row["kl"]["w4a16"] for row in report["groups"])


def test_vllm_serves_what_transformers_computes(folder: Path, tmp_path: Path) -> None:
    """To within the noise of rounded activations: any change of the last digits draws that noise anew.

    A change of the weights by a tenth of a per cent shows how large it is (0.3 nats rms here). vLLM also divides by 127
    where compressed-tensors does by 127.5.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    machine = find_machine()
    engine = planned_engine(EngineConfig(startup_timeout_s=900), machine)
    with ServedModel(Artifact(folder, "", 0, "mixed", None), engine, machine, serving_python(), tmp_path / "log") as it:
        asked = {"model": "model", "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "logprobs": 1, "echo": True}
        request = urllib.request.Request(
            f"{it.target().url}/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            choice = json.load(answer)["choices"][0]
    served = choice["logprobs"]["token_logprobs"]
    assert choice["text"].startswith(PROMPT)
    assert len(choice["text"]) > len(PROMPT)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt").input_ids

    def scores() -> np.ndarray:
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].numpy()

    ours, noise = scores(), 0.0
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        plain = [module for module in model.model.layers.modules() if isinstance(module, torch.nn.Linear)]
        saved = [module.weight.data for module in plain]
        for module in plain:
            change = torch.randn(module.weight.shape, generator=generator)
            module.weight.data = module.weight.data * (1 + 1e-3 * change)
        noise = max(noise, float(np.sqrt(np.mean((scores() - ours) ** 2))))
        for module, weight in zip(plain, saved, strict=True):
            module.weight.data = weight
    apart = np.array(served[1 : ids.shape[1]]) - ours
    assert np.sqrt(np.mean(apart**2)) < 2 * noise < 1.0
    assert abs(apart.mean()) < 0.3


def test_a_large_budget_leaves_groups_in_16_bit(base: Artifact, tokens: np.ndarray, tmp_path: Path) -> None:
    """A small random model with the real tokenizer: all three levels in one checkpoint."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "vocab_size": 49152}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.2)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(base.path).save_pretrained(tmp_path / "base")
    made = compressed(tmp_path / "base", tmp_path, tokens, target_bits=9.0, sensitivity_tokens=64)
    kinds = check_files(made)
    assert "16bit" in kinds
    assert len(kinds) > 1
    again = tmp_path / "again"
    again.mkdir()
    compressed(tmp_path / "base", again, tokens, target_bits=9.0, sensitivity_tokens=64)
    for name in ("model.safetensors", "sensitivity.json", "config.json"):
        assert (made / name).read_bytes() == (again / "model" / name).read_bytes(), f"{name} is not reproducible"
