import json
from pathlib import Path

import pytest
import yaml

from pipeline.checkpoints.card import license_entries, model_card
from pipeline.checkpoints.manifest import Recipe, base_revision, manifest
from pipeline.checkpoints.sizes import Tensor, size_report
from pipeline.config import ModelConfig
from pipeline.data.contamination import METHOD
from pipeline.types import Artifact

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CALIBRATION = {
    "name": "contexts",
    "digest": "d" * 64,
    "texts_digest": "e" * 64,
    "num_texts": 155,
    "num_texts_by_source": {"squad": 100, "own.txt": 55},
    "licenses": {"squad": "CC-BY-SA-4.0", "own.txt": "unknown (the user's own file)"},
    "source_digests": {"squad": "9" * 64, "own.txt": "f" * 64},
    "num_samples": 8,
    "length": 512,
    "seed": 0,
    "chat_template": False,
    "contamination": {
        "status": "checked",
        "method": METHOD,
        "num_items": {"boolq": 3270, "piqa": 1838},
        "num_texts_checked": 156,
        "num_texts_left_out": 1,
        "not_checked": {},
    },
}
HUB_MODEL = ModelConfig(
    name="smollm2-1.7b", source="hub", family="smollm2", license="apache-2.0", repo="HuggingFaceTB/SmolLM2-1.7B"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
}


def a_manifest(model: ModelConfig = HUB_MODEL, calibration=CALIBRATION, folder: Path | None = None, **more):
    base = {
        "model.embed_tokens.weight": Tensor("BF16", (100, 64), 12800),
        "model.layers.0.mlp.up_proj.weight": Tensor("BF16", (64, 64), 8192),
    }
    own = {
        "model.embed_tokens.weight": Tensor("BF16", (100, 64), 12800),
        "model.layers.0.mlp.up_proj.weight_packed": Tensor("I32", (64, 8), 2048),
        "model.layers.0.mlp.up_proj.weight_scale": Tensor("BF16", (64, 1), 128),
    }
    values = {
        "recipe": Recipe(
            method="gptq",
            args={"group_size": 64, "note": "a | b", "actorder": None},
            seed=0,
            tools={"torch": "2.13.0", "llmcompressor": "0.14.0.1"},
        ),
        "measured": {"wall_s": 76.4, "peak_host_bytes": 1508925440, "peak_device_bytes": None},
        "model": model,
        "base": Artifact(folder or Path("/cache/models--x/snapshots") / COMMIT, "b" * 64, 21000, "none", None),
        "digest": "a" * 64,
        "size": size_report(own, 15100, base, 21100, tied=True),
        "config": CONFIG,
        "calibration": calibration,
        "stage_key": "c" * 24,
        **more,
    }
    return manifest(**values)


def front_matter_of(card: str) -> dict:
    start, entries, _ = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(entries)


def test_the_manifest_holds_all_that_went_in() -> None:
    found = json.loads(json.dumps(a_manifest()))
    assert found["base"]["repo"] == "HuggingFaceTB/SmolLM2-1.7B"
    assert found["base"]["revision"] == COMMIT
    assert found["base"]["digest"] == "b" * 64
    assert found["method"] == "gptq"
    assert found["recipe"]["group_size"] == 64
    assert found["versions"]["torch"] == "2.13.0"
    assert found["calibration"]["digest"] == "d" * 64
    assert found["size"]["quantized_bytes"] == 2048
    assert found["num_bytes"] == 15100
    assert found["size"]["groups"][0]["bits_per_weight"] == 8 * 2176 / 4096
    assert found["wall_s"] == 76.4
    assert found["peak_device_bytes"] is None
    assert found["stage_key"] == "c" * 24
    assert (found["format"], found["quant_method"]) == ("pack-quantized", "compressed-tensors")


def test_the_manifest_holds_no_path(tmp_path: Path) -> None:
    local = ModelConfig(name="mine", path=str(tmp_path), license="mit", source="hub", repo="owner/other")
    found = a_manifest(local, folder=tmp_path)
    assert str(tmp_path) not in json.dumps(found)
    assert found["base"]["revision"] is None
    assert found["base"]["repo"] is None
    assert found["base"]["source"] == "path"


def test_only_a_hub_snapshot_has_a_revision() -> None:
    assert base_revision(Path("/x/snapshots") / COMMIT) == COMMIT
    assert base_revision(Path("/x/snapshots/main")) is None
    assert base_revision(Path("/x") / COMMIT) is None


def test_the_front_matter_is_what_the_hub_reads() -> None:
    from huggingface_hub import ModelCard

    card = model_card(a_manifest())
    found = front_matter_of(card)
    assert found == {
        "license": "apache-2.0",
        "base_model": "HuggingFaceTB/SmolLM2-1.7B",
        "base_model_relation": "quantized",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["compressed-tensors", "pack-quantized", "gptq", "vllm", "parsimony"],
    }
    parsed = ModelCard(card).data
    assert (parsed.base_model, parsed.license) == (found["base_model"], "apache-2.0")


def test_a_base_from_elsewhere_is_described_and_not_linked() -> None:
    local = ModelConfig(name="mine", source="embedded", license="My Own 1.0", note="Dequantized from Q4_1.")
    card = model_card(a_manifest(local, folder=Path("/x/base/model")))
    found = front_matter_of(card)
    assert "base_model" not in found
    assert "base_model_relation" not in found
    assert (found["license"], found["license_name"]) == ("other", "My Own 1.0")
    assert "Dequantized from Q4_1." in card
    assert "`mine`, compressed with the method `gptq`" in card


def test_the_text_says_how_to_use_and_how_it_was_made() -> None:
    card = model_card(a_manifest())
    for part in (
        f"at revision `{COMMIT}`",
        "vllm serve FOLDER",
        'AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")',
        "With transformers and the package `compressed-tensors`:",
        "| `group_size` | `64` |",
        "| `actorder` | none |",
        "| `note` | `a \\| b` |",
        "| version of llmcompressor | 0.14.0.1 |",
        "| wall time | 76 s |",
        "| peak host memory | 1,439 MiB |",
        "| peak device memory | not measured |",
        f"| squad | 100 | CC-BY-SA-4.0 | `{'9' * 64}` |",
        "8 sequences of 512 tokens, packed from 155 texts (plain)",
        "checked by word 13-grams",
        "5108 items; 1 texts were left out.",
        "| mlp | 2,176 | 4.25 |",
        "1.40 times smaller than the base",
        "Matrices in 16 bit: `model.embed_tokens`.",
        "The head shares the embedding matrix.",
    ):
        assert part in card, part


def test_without_figures_no_quality_is_claimed() -> None:
    assert "No measured figures are published" in model_card(a_manifest())
    rows = [
        {"task": "piqa", "metric": "acc", "base": 0.67, "value": 0.65, "lo": 0.64, "hi": 0.66, "num_items": 1838},
        {"task": "new", "metric": "acc", "base": None, "value": 0.5, "lo": 0.4, "hi": 0.6, "num_items": 10},
    ]
    card = model_card(a_manifest(), rows)
    assert "| piqa | acc | 0.6500 (0.6400 to 0.6600) | 0.6700 | 1838 |" in card
    assert "| new | acc | 0.5000 (0.4000 to 0.6000) | not measured | 10 |" in card
    assert "No measured figures" not in card


def test_no_calibration_and_no_check_are_said() -> None:
    assert "None: the method does not look at data." in model_card(a_manifest(calibration=None))
    unchecked = {
        "status": "not checked",
        "method": METHOD,
        "num_texts_checked": None,
        "num_texts_left_out": None,
        "not_checked": {"mmlu": "the hub's items are not here"},
    }
    card = model_card(a_manifest(calibration={**CALIBRATION, "contamination": unchecked, "chat_template": True}))
    assert "**not checked** (not compared: mmlu: the hub's items are not here)." in card
    assert "wrapped in the chat template" in card


def test_random_weights_are_called_random() -> None:
    card = model_card(a_manifest(ModelConfig(name="shape", source="hub", repo="o/n", weights="random", license="mit")))
    assert "**The weights are random.**" in card


def test_an_unknown_base_claims_no_ratio() -> None:
    own = {"model.layers.0.mlp.up_proj.qweight": Tensor("I32", (8, 64), 2048)}
    card = model_card(a_manifest(size=size_report(own, 2100, None, None, tied=False)))
    assert "times smaller" not in card
    assert "bits per weight: base not known" in card
    assert "| mlp | 2,048 | - |" in card


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("llama3.1", {"license": "llama3.1"}),
        ("unknown", {"license": "unknown"}),
        ("SSPL", {"license": "other", "license_name": "SSPL"}),
    ],
)
def test_licences_in_the_hubs_words(name: str, entries: dict) -> None:
    assert license_entries(name) == entries
