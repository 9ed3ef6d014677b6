"""What serving takes of memory, in the type that it is served in."""

from dataclasses import replace

import pytest

from pipeline.config import EngineConfig
from pipeline.serve.memory import GIB, memory_problems, weight_bytes_served
from pipeline.types import Machine
from tests.unit.pipeline.shapes import FACTS, MACHINE

LLAMA = replace(FACTS, name="llama3-8b", num_parameters=8_030_261_248)
H100 = Machine("cuda", "NVIDIA H100", 1, 16, None, 80 * GIB, 9.0)


def test_eight_billion_parameters_in_float32_do_not_fit_24_gib() -> None:
    assert weight_bytes_served(EngineConfig(dtype="float32"), LLAMA) == 4 * LLAMA.num_parameters
    (problem,) = memory_problems(EngineConfig(dtype="float32"), LLAMA, MACHINE)
    assert problem.field == "engine.dtype"
    assert "29.9 GiB of weights in float32" in str(problem)
    assert "24.0 GiB" in str(problem)
    assert "engine.dtype=bfloat16" in str(problem)
    assert memory_problems(EngineConfig(dtype="bfloat16"), LLAMA, MACHINE) == []


@pytest.mark.parametrize(
    ("memory_gib", "split", "fits"), [(80, 1, True), (16, 1, False), (16, 2, True), (None, 1, True)]
)
def test_a_gpu_needs_room_for_its_part_of_the_weights(memory_gib: int | None, split: int, fits: bool) -> None:
    machine = replace(H100, device_memory_bytes=None if memory_gib is None else memory_gib * GIB)
    assert (memory_problems(EngineConfig(tensor_parallel_size=split), LLAMA, machine) == []) is fits


def test_the_embedded_model_fits_a_laptop_in_either_type() -> None:
    laptop = replace(MACHINE, host_memory_bytes=8 * GIB)
    for dtype in ("float32", "bfloat16"):
        assert memory_problems(EngineConfig(dtype=dtype), FACTS, laptop) == []
