"""Mixed precision: each group of layers gets 4, 8 or 16 bits by its measured sensitivity, under a budget of bits.

    scripts/pipeline quant=mixed quant.target_bits=5.0

Three steps: `sensitivity` measures every fused group at every level on the calibration text, `allocate` chooses the
levels that harm least within `target_bits`, and llm-compressor's GPTQ (Frantar et al., arXiv 2210.17323) rounds the
weights against the calibration text. The levels are those that vLLM serves both on a CPU and on a GPU: W4A16
(symmetric, by groups of columns), W8A8 (INT8 weights by row, INT8 activations by token) and 16 bit.

Output: a compressed-tensors checkpoint of several formats (`mixed-precision`), and beside it `sensitivity.json`, which
says what was measured and what was chosen. `target_bits` counts the decoder layers' linear weights with their scales;
the head and the embeddings stay in 16 bit, as with the other methods. Scales are rounded to 16 bit before the weights
are, so that nothing is lost when they are stored so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import Problem
from core.files import write_json
from pipeline.checkpoints.facts import facts_from_folder, tensor_headers
from pipeline.compress import allocate
from pipeline.compress.allocate import FusedGroup, Level, Option
from pipeline.compress.backends import llmcompressor
from pipeline.compress.groups import check_group_size, check_observer, check_share
from pipeline.compress.memory import sequential_memory
from pipeline.compress.registry import CompressJob, Method
from pipeline.compress.sensitivity import Sensitivity, draw, measure
from pipeline.types import Machine, ModelFacts

if TYPE_CHECKING:
    import torch
    from compressed_tensors.quantization import QuantizationScheme
    from transformers import PreTrainedModel

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "unknown")
"""Models whose decoder layers have the projections that `allocate.fused_groups` names; `unknown`: a shape alone."""
MIN_TOKENS = 32
UNKNOWN_HOST_BYTES = 64 * 2**30
"""Assumed where a plan is made for another machine."""


@dataclass(frozen=True)
class Args:
    """Settings of `quant=mixed`."""

    target_bits: float = 5.0
    """Budget: stored bits per weight of the decoder layers' linear weights, scales included."""
    group_size: int = 64
    """Columns that share a scale in a 4-bit layer; must divide the columns of every layer."""
    dampening: float = 0.01
    """GPTQ's dampening, as a share of the Hessian's mean diagonal."""
    sensitivity_tokens: int = 256
    """Calibration tokens that the sensitivities are measured on."""
    observer: str = "mse"
    """How a 4-bit group's scale is found: `mse` searches the one of least error, `minmax` takes the largest."""


def check(args: Args, facts: ModelFacts, machine: Machine) -> list[Problem]:
    """The model's layers, the group size, the budget's range, and the numbers."""
    problems = []
    if facts.architecture not in ARCHITECTURES:
        message = f"'mixed' knows the layers of {', '.join(ARCHITECTURES[:-1])}, not of {facts.architecture}"
        problems.append(Problem("quant.method", message, ("quant=gptq", "quant=int8")))
    most = max_tokens(facts, machine)
    if not MIN_TOKENS <= args.sensitivity_tokens <= most:
        message = (
            f"{args.sensitivity_tokens} is not allowed; it must be at least {MIN_TOKENS}, and at most {most} for this "
            "model in this machine's memory"
        )
        problems.append(Problem("quant.sensitivity_tokens", message, ("quant.sensitivity_tokens=256",)))
    of_group_size = check_group_size(args.group_size, facts)
    of_bits = [] if of_group_size else check_bits(args, facts)
    of_gptq = [*check_share("dampening", args.dampening), *check_observer(args.observer)]
    return [*problems, *of_gptq, *of_group_size, *of_bits]


def max_tokens(facts: ModelFacts, machine: Machine) -> int:
    """Tokens whose float32 hidden states, one for each group and level, take a quarter of the host's memory."""
    num_variants = len(allocate.fused_groups(facts)) * sum(level.weight_bits < 16 for level in allocate.levels(64))
    host_bytes = machine.host_memory_bytes or UNKNOWN_HOST_BYTES
    return host_bytes // 4 // (num_variants * facts.hidden_size * 4)


def check_bits(args: Args, facts: ModelFacts) -> list[Problem]:
    """The budget lies between the smallest levels' real size and 16 bit."""
    groups = allocate.fused_groups(facts)
    lowest = allocate.lowest_bits_per_weight(groups, allocate.levels(args.group_size))
    if lowest <= args.target_bits < 16:
        return []
    message = (
        f"{args.target_bits} is not allowed; it must be at least {lowest:.4f} (4-bit weights with a 16-bit scale for "
        f"each {args.group_size} of them) and below 16 (nothing would be quantized)"
    )
    return [Problem("quant.target_bits", message, ("quant.target_bits=5.0", "quant=none for 16 bit"))]


def compress(job: CompressJob) -> None:
    """Write the mixed checkpoint and `sensitivity.json`."""
    import numpy as np
    import torch
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoConfig

    assert job.calibration is not None, "mixed needs calibration text"
    args = Args(**job.args)
    groups = allocate.fused_groups(facts_from_folder("base", job.base))
    known = allocate.levels(args.group_size)
    rounded = [level for level in known if level.weight_bits < 16]
    # What is not rounded is stored in 16 bit, as the scales are: in the base's own type, if that has 16 bit.
    stored = torch.float16 if AutoConfig.from_pretrained(job.base).dtype == torch.float16 else torch.bfloat16
    model, tokenizer = llmcompressor.load_base(job)
    sample = draw(np.load(job.calibration, allow_pickle=False), args.sensitivity_tokens, job.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    measured = measure(
        model, groups, {level.name: scheme_of(level, [], stored, args.observer) for level in rounded}, sample, device
    )
    options = options_of(groups, known, measured)
    max_bits = int(args.target_bits * sum(group.num_weights for group in groups))
    chosen = allocate.allocate(options, max_bits)
    config_groups = {
        level.name: scheme_of(level, targets, stored, args.observer)
        for level in rounded
        if (targets := targets_of(level.name, groups, chosen))
    }
    modifier = GPTQModifier(config_groups=config_groups, ignore=["lm_head"], dampening_frac=args.dampening)
    llmcompressor.apply([modifier], model, tokenizer, job.calibration)
    llmcompressor.keep_16_bit(model, stored)
    store_scales(model, stored)
    llmcompressor.save(model, tokenizer, job.output)
    spent = stored_bits(job.output)
    assert spent <= max_bits, f"{spent} bits are stored, more than the budget of {max_bits}"
    report = report_of(args, groups, options, measured, chosen, spent)
    report["measured_on"] = {"num_sequences": sample.shape[0], "length": sample.shape[1], "seed": job.seed}
    write_json(job.output / "sensitivity.json", report)


def options_of(
    groups: Sequence[FusedGroup], known: Sequence[Level], measured: Sequence[Sensitivity]
) -> dict[str, list[Option]]:
    """Each group's levels with their bits and sensitivities; a group that stays in 16 bit does no harm."""
    kl = {(found.group, found.level): found.kl for found in measured}
    return {
        group.name: [
            Option(level.name, level.num_bits(group), 0.0 if level.weight_bits == 16 else kl[group.name, level.name])
            for level in known
        ]
        for group in groups
    }


def scheme_of(level: Level, targets: Sequence[str], scale_dtype: torch.dtype, observer: str) -> QuantizationScheme:
    """The level as a compressed-tensors QuantizationScheme for these modules."""
    from compressed_tensors.quantization import preset_name_to_scheme

    scheme = preset_name_to_scheme(level.name, list(targets))
    scheme.weights.group_size = level.group_size
    scheme.weights.scale_dtype = scale_dtype
    if level.group_size is not None:
        scheme.weights.observer = llmcompressor.OBSERVER_NAMES[observer] or scheme.weights.observer
    return scheme


def targets_of(level: str, groups: Sequence[FusedGroup], chosen: Mapping[str, str]) -> list[str]:
    """The modules of a level as anchored patterns, one for each kind of group that has any."""
    members: dict[str, list[FusedGroup]] = {}
    for group in groups:
        if chosen[group.name] == level:
            members.setdefault(group.kind, []).append(group)
    return [
        rf"re:.*\.layers\.({'|'.join(str(group.layer) for group in found)})\.{found[0].parent}"
        rf"\.({'|'.join(found[0].shapes)})$"
        for found in members.values()
    ]


def store_scales(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Hold the weights' scales in the 16-bit type that they were rounded to before the weights were."""
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            module.weight_scale.data = module.weight_scale.data.to(dtype)


def stored_bits(folder: Path) -> int:
    """Bits that a checkpoint's files give to the decoder layers' projections, biases left out."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in tensor_headers(path).items():
            if ".layers." in name and "_proj." in name and not name.endswith(".bias"):
                start, end = tensor["data_offsets"]
                total += 8 * (end - start)
    return total


def report_of(
    args: Args,
    groups: Sequence[FusedGroup],
    options: Mapping[str, Sequence[Option]],
    measured: Sequence[Sensitivity],
    chosen: Mapping[str, str],
    spent: int,
) -> dict[str, object]:
    """What `sensitivity.json` says: the budget, and for each group what was measured and what was chosen."""
    num_weights = sum(group.num_weights for group in groups)
    taken = [option for name, found in options.items() for option in found if option.level == chosen[name]]
    rows = []
    for group in groups:
        of_group = [found for found in measured if found.group == group.name]
        rows.append(
            {
                "group": group.name,
                "num_weights": group.num_weights,
                "level": chosen[group.name],
                "num_bits": {option.level: option.num_bits for option in options[group.name]},
                "kl": {found.level: found.kl for found in of_group},
                "kl_standard_error": {found.level: found.standard_error for found in of_group},
            }
        )
    return {
        "target_bits": args.target_bits,
        "bits_per_weight": spent / num_weights,
        "num_weights": num_weights,
        "sum_of_kl": sum(option.kl for option in taken),
        "groups": rows,
    }


METHOD = Method(
    name="mixed",
    args=Args,
    compress=compress,
    needs_calibration=True,
    tools=(*llmcompressor.TOOLS, "scipy"),
    check=check,
    memory=sequential_memory,
    products=("w4a16", "w8a8"),
)
