"""All that a training run is at a step, as tensors and JSON: taken in a moment, written beside the training, put back.

Replicated students are read directly: one copy into buffers that are kept (pinned on a GPU's host), which is all that
the training waits for. Sharded ones (FSDP) go through torch's own `distributed.checkpoint.state_dict`, gathered on the
first process.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from core.files import canonical_json, read_json

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
SEPARATOR = "|"


class RandomStates(TypedDict):
    """A process's random generators, as JSON can hold them; tensors are base64."""

    python: tuple[int, list[int], float | None]
    numpy: tuple[str, list[int], int, int, float]
    torch: str
    cuda: str | None


class Buffers:
    """Host memory that training state is copied into, kept from one checkpoint to the next."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors' values at this moment, on the host."""
        copies: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            kept = self._kept.get(name)
            if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
                kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._kept[name] = kept
            copies[name] = kept.copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return copies


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, each tensor once: a tied head is its embedding."""
    saved = set(model.state_dict().keys())
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach() for name, tensor in named.items() if name in saved}


def moments_of(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], list[dict[str, object]]]:
    """The optimizer's tensors as `parameter|moment`, and its groups' settings."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for parameter, moments in optimizer.state.items():
        for kind, value in moments.items():
            tensors[f"{names[parameter]}{SEPARATOR}{kind}"] = torch.as_tensor(value)
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return tensors, groups


def put_back(model: nn.Module, optimizer: Optimizer, folder: Path) -> None:
    """Load weights and moments from a checkpoint's files into a replicated model and its optimizer."""
    from safetensors.torch import load_file

    weights = load_file(folder / MODEL_FILE)
    mine = weights_of(model)
    assert weights.keys() == mine.keys(), "a checkpoint of another model"
    with torch.no_grad():
        for name, tensor in mine.items():
            tensor.copy_(weights[name])
    stored = load_file(folder / OPTIMIZER_FILE)
    groups = read_json(folder / STATE_FILE)["optimizer_groups"]
    names = {parameter: name for name, parameter in model.named_parameters()}
    state: dict[int, dict[str, Tensor]] = {}
    number = 0
    for group, settings in zip(optimizer.param_groups, groups, strict=True):
        # torch's state dicts number the parameters through all groups, in this order.
        settings["params"] = []
        for parameter in group["params"]:
            prefix = names[parameter] + SEPARATOR
            moments = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
            if moments:
                state[number] = moments
            settings["params"].append(number)
            number += 1
        # JSON has no tuples.
        if isinstance(settings.get("betas"), list):
            settings["betas"] = tuple(settings["betas"])
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def sharded_state(
    model: nn.Module, optimizer: Optimizer
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[dict[str, object]]]:
    """Weights, moments and group settings of an FSDP model, whole, on the first process; empty on the others."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, found = get_state_dict(model, optimizer, options=options)
    kept = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    moments = {
        f"{name}{SEPARATOR}{kind}": torch.as_tensor(value)
        for name, kinds in found.get("state", {}).items()
        for kind, value in kinds.items()
    }
    return {name: value for name, value in weights.items() if name in kept}, moments, found.get("param_groups", [])


def put_back_sharded(model: nn.Module, optimizer: Optimizer, folder: Path) -> None:
    """Load weights and moments into an FSDP model; every process reads the files."""
    from safetensors.torch import load_file
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    state: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(folder / OPTIMIZER_FILE).items():
        name, _, kind = key.rpartition(SEPARATOR)
        state.setdefault(name, {})[kind] = value
    groups = read_json(folder / STATE_FILE)["optimizer_groups"]
    set_state_dict(
        model,
        optimizer,
        model_state_dict=load_file(folder / MODEL_FILE),
        optim_state_dict={"state": state, "param_groups": groups},
        options=StateDictOptions(full_state_dict=True, strict=False),
    )


def random_states() -> RandomStates:
    """Every generator of this process: Python's, NumPy's, torch's, and the GPU's where there is one."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {
        "python": (version, list(words), gauss),
        "numpy": (str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)),
        "torch": _text(torch.get_rng_state()),
        "cuda": None if cuda is None else _text(cuda),
    }


def set_random_states(states: RandomStates) -> None:
    """The inverse of `random_states`."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_tensor(states["torch"]))
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_tensor(states["cuda"]))


def state_bytes(value: Mapping[str, object]) -> bytes:
    """The JSON part of a checkpoint. Floats keep every bit: JSON writes the shortest text that reads back the same."""
    return canonical_json(value).encode()


def _text(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
