"""The model card that stands beside an artifact's weights as `README.md`, in the Hugging Face hub's form. Pure.

The front matter follows the hub's model card specification (huggingface.co/docs/hub/model-cards). `base_model` must be
a hub repository: a base from another place is described in the text instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypedDict, TypeVar

import yaml

from pipeline.checkpoints.manifest import Manifest
from pipeline.checkpoints.sizes import collapse
from pipeline.data.calibration import CalibrationRecord

T = TypeVar("T")
HUB_LICENSES = {
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bsd-2-clause", "bsd-3-clause",
    "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "gemma", "llama2", "llama3", "llama3.1",
    "llama3.2", "llama3.3", "llama4", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "unlicense", "unknown", "other",
}  # fmt: skip
"""License identifiers of the hub that models of our families carry; any other is written as `other` with its name."""
LOADERS = {
    "compressed-tensors": "compressed-tensors",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
}
"""`quant_method` of a checkpoint -> the package that transformers needs to load it."""
Part = Literal[
    "quantized_bytes", "scale_bytes", "bits16_bytes", "bits32_bytes", "other_bytes", "header_bytes"
]  # fmt: skip
TITLES: dict[Part, str] = {
    "quantized_bytes": "Quantized weights",
    "scale_bytes": "Scales and zero points",
    "bits16_bytes": "16-bit parts",
    "bits32_bytes": "32-bit parts",
    "other_bytes": "Other tensors",
    "header_bytes": "File headers",
}


class QualityRow(TypedDict):
    """One measured figure of a model card."""

    task: str
    metric: str
    base: float | None
    """The base's value; None for the base itself."""
    value: float
    lo: float
    hi: float
    num_items: int


def model_card(manifest: Manifest, quality: Sequence[QualityRow] = ()) -> str:
    """README.md of an artifact.

    Args:
        manifest: as `manifest` made it.
        quality: measured figures; without any the card has no section on quality, and says so.

    """
    sections = [
        front_matter(manifest),
        _what(manifest),
        _how(manifest),
        _calibration(manifest["calibration"]),
        _sizes(manifest),
        _use(manifest),
        _quality(quality),
    ]
    return "\n".join(section.strip("\n") + "\n" for section in sections)


def front_matter(manifest: Manifest) -> str:
    """The YAML block that the hub reads."""
    base = manifest["base"]
    entries: dict[str, object] = dict(license_entries(base["license"]))
    if base["repo"]:
        entries["base_model"] = base["repo"]
        entries["base_model_relation"] = "quantized"
    entries["library_name"] = "transformers"
    entries["pipeline_tag"] = "text-generation"
    tags = [manifest["quant_method"], manifest["format"], manifest["method"], "vllm", "parsimony"]
    entries["tags"] = list(dict.fromkeys(str(tag) for tag in tags if tag))
    return f"---\n{yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)}---\n"


def license_entries(name: str) -> dict[str, str]:
    """A license in the hub's words: its own identifier, or `other` with the name."""
    known = name.lower()
    return {"license": known} if known in HUB_LICENSES else {"license": "other", "license_name": name}


def _what(manifest: Manifest) -> str:
    base = manifest["base"]
    origin = f"[{base['repo']}](https://huggingface.co/{base['repo']})" if base["repo"] else f"`{base['name']}`"
    if base["revision"]:
        origin += f" at revision `{base['revision']}`"
    lines = [
        f"# {base['name']} · {manifest['method']}",
        f"{origin}, compressed with the method `{manifest['method']}` "
        f"(format: {_code(manifest['format'], 'plain weights')}).",
    ]
    if base["note"]:
        lines.append(f"About the base model: {base['note']}")
    if base["weights"] == "random":
        lines.append("**The weights are random.** The model has a real shape and speed, and its answers mean nothing.")
    lines.append(f"License of the base model's weights: {base['license']}. Its terms apply to this model.")
    return "\n\n".join(lines)


def _how(manifest: Manifest) -> str:
    rows: list[tuple[str, object]] = [("method", f"`{manifest['method']}`"), ("seed", manifest["seed"])]
    rows += [(f"`{name}`", _value(value)) for name, value in sorted(manifest["recipe"].items())]
    rows += [(f"version of {name}", value) for name, value in sorted(manifest["versions"].items())]
    rows += [
        ("base checkpoint, SHA-256", f"`{manifest['base']['digest']}`"),
        ("this checkpoint, SHA-256", f"`{manifest['digest']}`"),
        ("wall time", _or_unknown(manifest["wall_s"], lambda value: f"{value:.0f} s")),
        ("peak host memory", _or_unknown(manifest["peak_host_bytes"], _mib)),
        ("peak device memory", _or_unknown(manifest["peak_device_bytes"], _mib)),
        ("stage key", _or_unknown(manifest["stage_key"], lambda value: f"`{value}`")),
    ]
    return "## How it was made\n\n" + _table(("", ""), rows) + "\n\n`manifest.json` has the same in full."


def _calibration(calibration: CalibrationRecord | None) -> str:
    if calibration is None:
        return "## Calibration text\n\nNone: the method does not look at data."
    counts = calibration["num_texts_by_source"]
    sources = [
        (name, counts.get(name), license_name, f"`{calibration['source_digests'].get(name)}`")
        for name, license_name in calibration["licenses"].items()
    ]
    form = "wrapped in the chat template as a user's message" if calibration["chat_template"] else "plain"
    found = calibration["contamination"]
    if found["num_texts_left_out"] is None:
        check = "Evaluation items in this text: **not checked**"
    else:
        check = (
            f"Evaluation items in this text: {found['status']} by {found['method']}, "
            f"{sum(found['num_items'].values())} items; {found['num_texts_left_out']} texts were left out"
        )
    reasons = "; ".join(f"{task}: {reason}" for task, reason in found["not_checked"].items())
    return "\n\n".join(
        [
            "## Calibration text",
            f"{calibration['num_samples']} sequences of {calibration['length']} tokens, packed from "
            f"{calibration['num_texts']} texts ({form}), drawn with seed {calibration['seed']}.",
            _table(("source", "texts", "license", "digest of all its texts"), sources),
            f"Token ids, SHA-256: `{calibration['digest']}`. Texts, digest of their SHA-256 list: "
            f"`{calibration['texts_digest']}`.",
            f"{check} (not compared: {reasons})." if reasons else f"{check}.",
        ]
    )


def _sizes(manifest: Manifest) -> str:
    size = manifest["size"]
    parts = [(title, f"{size[part]:,}") for part, title in TITLES.items() if size[part]]
    groups = [
        (group["name"], f"{group['num_bytes']:,}", _or_unknown(group["bits_per_weight"], "{:.2f}".format, "-"))
        for group in size["groups"]
    ]
    ratio = (
        ""
        if size["base_bytes"] is None
        else f", {size['base_bytes'] / size['num_bytes']:.2f} times smaller than the base"
    )
    bits = _or_unknown(
        size["bits_per_weight"], "{:.2f} bits per weight overall".format, "bits per weight: base not known"
    )
    text = [
        "## Size",
        f"{size['num_bytes']:,} bytes of weight files{ratio}; {bits}.",
        _table(("part", "bytes"), parts),
        _table(("layers", "bytes", "bits per weight"), groups),
    ]
    for bits_name, kept in (("16", size["kept_16_bit"]), ("32", size["kept_32_bit"])):
        if kept:
            text.append(f"Matrices in {bits_name} bit: {', '.join(f'`{name}`' for name in collapse(kept))}.")
    if size["tied_lm_head"]:
        text.append("The head shares the embedding matrix.")
    return "\n\n".join(text)


def _use(manifest: Manifest) -> str:
    package = LOADERS.get(str(manifest["quant_method"]))
    needs = f" and the package `{package}`" if package else ""
    return f"""## Use

FOLDER is this folder, or its name on the hub. vLLM reads the format from the checkpoint: pass no `--quantization`.

```bash
vllm serve FOLDER
```

With transformers{needs}:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```
"""


def _quality(quality: Sequence[QualityRow]) -> str:
    if not quality:
        return "## Quality\n\nNo measured figures are published with this checkpoint."
    rows = [
        (
            row["task"],
            row["metric"],
            f"{row['value']:.4f} ({row['lo']:.4f} to {row['hi']:.4f})",
            _or_unknown(row["base"], "{:.4f}".format),
            row["num_items"],
        )
        for row in quality
    ]
    header = ("task", "metric", "this model (interval)", "base, asked alike", "items")
    return "## Quality\n\n" + _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def _or_unknown(value: T | None, shown: Callable[[T], str], unknown: str = "not measured") -> str:
    return unknown if value is None else shown(value)


def _value(value: object) -> str:
    return "none" if value is None else f"`{value}`"


def _code(value: str | None, otherwise: str) -> str:
    return f"`{value}`" if value else otherwise


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
