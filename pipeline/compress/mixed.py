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
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import Problem
from common.files import write_json
from pipeline.compress import allocate, llmcompressor
from pipeline.compress.allocate import FusedGroup, Level, Option
from pipeline.compress.memory import sequential_memory
from pipeline.facts import facts_from_folder, tensor_headers
from pipeline.registry import CompressJob, Method
from pipeline.types import Machine, ModelFacts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.compress.sensitivity import Sensitivity

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "unknown")
"""Models whose decoder layers hold the projections that `allocate.fused_groups` names; `unknown`: a shape alone."""
GROUP_SIZES = (32, 64, 128)
"""What the 4-bit kernels of both devices take."""
MIN_TOKENS = 32
UNKNOWN_HOST_BYTES = 64 * 2**30
"""Assumed where a plan is made for another machine."""
CPU_KERNEL_ROWS = 32
"""vLLM's 4-bit CPU kernel takes output sizes that are multiples of this."""


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


def check(args: Args, facts: ModelFacts, machine: Machine) -> list[Problem]:
    """The model's layers, the group size, the budget's range, and the numbers."""
    problems = []
    if facts.architecture not in ARCHITECTURES:
        message = f"'mixed' knows the layers of {', '.join(ARCHITECTURES[:-1])}, not of {facts.architecture}"
        problems.append(Problem("quant.method", message, ("quant=gptq", "quant=int8")))
    if not 0 < args.dampening < 1:
        problems.append(Problem("quant.dampening", f"{args.dampening} is not between 0 and 1"))
    most = max_tokens(facts, machine)
    if not MIN_TOKENS <= args.sensitivity_tokens <= most:
        message = (
            f"{args.sensitivity_tokens} is not allowed; it must be at least {MIN_TOKENS}, and at most {most} for this "
            "model in this machine's memory"
        )
        problems.append(Problem("quant.sensitivity_tokens", message, ("quant.sensitivity_tokens=256",)))
    of_group_size = check_group_size(args, facts)
    return [*problems, *of_group_size, *check_rows(facts, machine), *([] if of_group_size else check_bits(args, facts))]


def max_tokens(facts: ModelFacts, machine: Machine) -> int:
    """Tokens whose float32 hidden states, one for each group and level, take a quarter of the host's memory."""
    num_variants = len(allocate.fused_groups(facts)) * sum(level.weight_bits < 16 for level in allocate.levels(64))
    host_bytes = machine.host_memory_bytes or UNKNOWN_HOST_BYTES
    return host_bytes // 4 // (num_variants * facts.hidden_size * 4)


def check_group_size(args: Args, facts: ModelFacts) -> list[Problem]:
    """The kernels take the group size, and it divides every quantized layer's columns."""
    if args.group_size not in GROUP_SIZES:
        allowed = ", ".join(str(size) for size in GROUP_SIZES)
        return [Problem("quant.group_size", f"{args.group_size} is not one of {allowed}: the 4-bit kernels take these")]
    columns: dict[int, list[str]] = {}
    for group in allocate.fused_groups(facts)[:4]:
        for name, (_, size) in group.shapes.items():
            columns.setdefault(size, []).append(name)
    offenders = [
        f"{size} columns of {', '.join(names)}" for size, names in columns.items() if size % args.group_size != 0
    ]
    if not offenders:
        return []
    common = gcd(*columns)
    ways = tuple(f"quant.group_size={size}" for size in GROUP_SIZES if common % size == 0)
    message = f"{args.group_size} does not divide the {'; the '.join(offenders)}"
    return [Problem("quant.group_size", message, ways or ("quant=int8, which has no groups of columns",))]


def check_rows(facts: ModelFacts, machine: Machine) -> list[Problem]:
    """The 4-bit CPU kernel of vLLM takes only some output sizes."""
    if machine.device != "cpu":
        return []
    odd = [
        f"{sum(rows for rows, _ in group.shapes.values())} rows of {', '.join(group.shapes)}"
        for group in allocate.fused_groups(facts)[:4]
        if sum(rows for rows, _ in group.shapes.values()) % CPU_KERNEL_ROWS
    ]
    if not odd:
        return []
    message = f"vLLM's 4-bit CPU kernel needs multiples of {CPU_KERNEL_ROWS}, not the {'; the '.join(odd)}"
    return [Problem("quant.method", message, ("quant=int8", "serve on a GPU"))]


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
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

    from pipeline.compress.sensitivity import draw, measure

    assert job.calibration is not None, "mixed needs calibration text"
    args = Args(**job.args)
    groups = allocate.fused_groups(facts_from_folder("base", job.base))
    known = allocate.levels(args.group_size)
    rounded = [level for level in known if level.weight_bits < 16]
    set_seed(job.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # What is not rounded is stored in 16 bit, as the scales are: in the base's own type, if that has 16 bit.
    stored = torch.float16 if AutoConfig.from_pretrained(job.base).dtype == torch.float16 else torch.bfloat16
    # Most processors compute 16 bit slowly or by emulation: on a CPU the work is done in float32.
    model = AutoModelForCausalLM.from_pretrained(job.base, dtype="auto" if device == "cuda" else torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(job.base)
    token_ids = np.load(job.calibration, allow_pickle=False)
    sample = draw(token_ids, args.sensitivity_tokens, job.seed)
    measured = measure(model, groups, {level.name: scheme_of(level, [], stored) for level in rounded}, sample, device)
    options = options_of(groups, known, measured)
    max_bits = int(args.target_bits * sum(group.num_weights for group in groups))
    chosen = allocate.allocate(options, max_bits)
    config_groups = {
        level.name: scheme_of(level, targets, stored)
        for level in rounded
        if (targets := targets_of(level.name, groups, chosen))
    }
    quantize(model, tokenizer, token_ids, config_groups, args.dampening)
    llmcompressor.keep_16_bit(model, stored)
    store_scales(model, stored)
    model.save_pretrained(job.output, save_compressed=True)
    tokenizer.save_pretrained(job.output)
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


def scheme_of(level: Level, targets: Sequence[str], scale_dtype: Any) -> Any:
    """The level as a compressed-tensors QuantizationScheme for these modules."""
    from compressed_tensors.quantization import preset_name_to_scheme

    scheme = preset_name_to_scheme(level.name, list(targets))
    scheme.weights.group_size = level.group_size
    scheme.weights.scale_dtype = scale_dtype
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


def quantize(
    model: Any, tokenizer: Any, token_ids: NDArray[np.int64], config_groups: Mapping[str, Any], dampening: float
) -> None:
    """GPTQ over the calibration text, shape (num_samples, length), block by block."""
    import numpy as np
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier

    rows = {"input_ids": token_ids.tolist(), "attention_mask": np.ones_like(token_ids).tolist()}
    modifier = GPTQModifier(config_groups=dict(config_groups), ignore=["lm_head"], dampening_frac=dampening)
    with torch.random.fork_rng(devices=[]):
        oneshot(
            model=model,
            processor=tokenizer,
            recipe=[modifier],
            dataset=Dataset.from_dict(rows),
            max_seq_length=token_ids.shape[1],
            num_calibration_samples=token_ids.shape[0],
            shuffle_calibration_samples=False,
        )


def store_scales(model: Any, dtype: Any) -> None:
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
) -> dict[str, Any]:
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
)
