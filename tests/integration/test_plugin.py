"""Our vLLM plug-in in the serving environment: its weights are those that the checkpoint's packed codes stand for."""

import os
import subprocess
from pathlib import Path

import pytest

from core.environments import serving_python
from pipeline.config import EngineConfig
from pipeline.plan.machine import find_machine
from pipeline.serve.engine import PLUGIN, server_environment

pytestmark = pytest.mark.integration

SCRIPT = """
import torch
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.model_executor.kernels.linear import MPLinearLayerConfig, choose_mp_linear_kernel
from vllm.model_executor.layers.quantization.utils.quant_utils import pack_quantized_values_into_int32 as pack
from vllm.scalar_type import scalar_types

def parameter(data, **dims):
    made = torch.nn.Parameter(data, requires_grad=False)
    for name, value in dims.items():
        setattr(made, name, value)
    return made

torch.manual_seed(0)
rows, columns = 64, 128
checked = 0
for kind, group in [(scalar_types.uint8b128, -1), (scalar_types.uint8b128, 64), (scalar_types.uint4b8, 64),
                    (scalar_types.uint4, 64), (scalar_types.uint4b8, 32)]:
    for transposed in (False, True):
        has_zeros = kind is scalar_types.uint4
        groups = 1 if group == -1 else columns // group
        codes = torch.randint(0, 2 ** kind.size_bits, (rows, columns), dtype=torch.int32)
        scale = torch.rand(rows, groups) + 0.5
        zeros = torch.randint(0, 16, (rows, groups), dtype=torch.int32)
        width = columns // groups
        offset = zeros.repeat_interleave(width, 1).float() if has_zeros else float(kind.bias)
        expected = (codes.float() - offset) * scale.repeat_interleave(width, 1)
        config = MPLinearLayerConfig((columns, rows), (columns, rows), kind, torch.float32, group, has_zeros)
        from parsimony_vllm import kernel_class
        kernel_type = kernel_class()
        assert kernel_type.can_implement(config)[0]
        chosen = choose_mp_linear_kernel(config).__name__
        layer = torch.nn.Module()
        layer.bias = None
        if transposed:  # GPTQ: (columns / pack, rows)
            layer.w = parameter(pack(codes.t().contiguous(), kind, 0), input_dim=0, output_dim=1, packed_dim=0)
            layer.s = parameter(scale.t().contiguous(), input_dim=0, output_dim=1)
            layer.z = parameter(pack(zeros.t().contiguous(), kind, 1), input_dim=0, output_dim=1, packed_dim=1)
        else:  # compressed-tensors: (rows, columns / pack)
            layer.w = parameter(pack(codes, kind, 1), input_dim=1, output_dim=0, packed_dim=1)
            layer.s = parameter(scale, input_dim=1, output_dim=0)
            layer.z = parameter(pack(zeros, kind, 0), input_dim=1, output_dim=0, packed_dim=0)
        kernel = kernel_type(config, "w", "s", "z")
        kernel.process_weights_after_loading(layer)
        x = torch.randn(5, columns)
        answer = kernel.apply_weights(layer, x)
        torch.testing.assert_close(answer, x @ expected.t(), rtol=1e-4, atol=1e-2)
        checked += 1
        print(kind, group, transposed, chosen)
print("checked", checked)
"""


INT8 = """
import torch
from vllm.plugins import load_general_plugins
load_general_plugins()
import parsimony_vllm
from vllm.model_executor.kernels.linear import init_int8_linear_kernel
from vllm.model_executor.kernels.linear.scaled_mm.ScaledMMLinearKernel import Int8ScaledMMLinearLayerConfig

NAMES = ("weight", "weight_scale", "input_scale", "input_zero_point", "azp_adj")
torch.manual_seed(0)
rows, columns = 64, 192
ours = parsimony_vllm.int8_kernel_class()
checked = 0
for codes in (torch.randint(-127, 128, (rows, columns)), torch.full((rows, columns), 127)):
    for static, symmetric, channelwise in [(False, True, True), (False, False, True), (False, True, False),
                                           (True, True, True), (True, False, False)]:
        scale = torch.rand(rows, 1) / 100 if channelwise else torch.tensor([0.004, 0.007])
        by_row = scale if channelwise else scale.repeat_interleave(rows // 2).unsqueeze(1)
        layer = torch.nn.Module()
        layer.logical_widths = [rows // 2, rows // 2]
        layer.bias = None
        made = {"weight": codes.to(torch.int8), "weight_scale": scale, "input_scale": None, "input_zero_point": None}
        if static:
            made["input_scale"] = torch.tensor([0.03, 0.03])
            made["input_zero_point"] = None if symmetric else torch.tensor([5, 5], dtype=torch.int32)
        for name, value in made.items():
            setattr(layer, name, None if value is None else torch.nn.Parameter(value, requires_grad=False))
        kernel = ours(Int8ScaledMMLinearLayerConfig(static, channelwise, symmetric), NAMES)
        kernel.process_weights_after_loading(layer)
        x, bias = torch.rand(2, 5, columns) * 3 + 0.1, torch.randn(rows)
        answer = kernel.apply_weights(layer, x, bias)
        exact = x @ (codes * by_row).t() + bias  # but for the rounding of x: half a step a product
        step = 0.03 if static else x.amax() / 127
        bound = step * (codes * by_row).abs().sum(1).max()
        assert answer.shape == (2, 5, rows) and (answer - exact).abs().max() < bound, (static, symmetric, channelwise)
        assert (answer - exact).norm() < 0.01 * exact.norm(), ((answer - exact).norm(), exact.norm())
        checked += 1
chosen = type(init_int8_linear_kernel(True, False, True, "a layer")).__name__
print("checked", checked)
print("saturates:", parsimony_vllm.int8_products_saturate(), chosen)
"""


QUEUE = """
import threading, time
from vllm.plugins import load_general_plugins
load_general_plugins()
import parsimony_vllm
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

if __name__ == "__main__":
    writer = MessageQueue(n_reader=1, n_local_reader=1)
    reader = MessageQueue.create_from_handle(writer.export_handle(), 0)
    got = []
    def read():
        reader.wait_until_ready()
        while len(got) < 60:
            got.append(reader.dequeue(timeout=30))
    thread = threading.Thread(target=read)
    thread.start()
    writer.wait_until_ready()
    for index in range(60):
        time.sleep(0.02 if index % 3 else 0)  # longer and shorter than the reader spins
        writer.enqueue(index)
    thread.join(60)
    assert got == list(range(60)), got
    print("sleeps soon:", reader._spin_condition.busy_loop_s <= parsimony_vllm.SPIN_S)
"""


def run_in_serving_environment(script: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(PLUGIN), "VLLM_NO_USAGE_STATS": "1"}
    file = folder / "script.py"
    file.write_text(script)
    done = subprocess.run(
        [str(serving_python()), str(file)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_message_arrives_where_a_waiting_process_sleeps(tmp_path: Path) -> None:
    is_small = (os.cpu_count() or 1) <= 4
    assert f"sleeps soon: {is_small}" in run_in_serving_environment(QUEUE, tmp_path)


def test_int8_products_are_exact_where_the_processor_cuts_their_sums_off(tmp_path: Path) -> None:
    said = run_in_serving_environment(INT8, tmp_path)
    assert "checked 10" in said
    saturates = not find_machine().has_int8
    assert f"saturates: {saturates} {'ExactInt8LinearKernel' if saturates else 'CPUInt8ScaledMMLinearKernel'}" in said


def test_the_plugins_weights_are_what_the_packed_codes_stand_for(tmp_path: Path) -> None:
    said = run_in_serving_environment(SCRIPT, tmp_path)
    assert "checked 10" in said
    # 8-bit weights have no other kernel on any processor.
    assert all("DequantizedLinearKernel" in line for line in said.splitlines() if "uint8" in line)


PROPOSER = """
import os
from types import SimpleNamespace
import torch
torch.set_num_threads(2)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # a worker's main thread has a core of its own
from vllm.v1.spec_decode.ngram_proposer import NgramProposer
NgramProposer(SimpleNamespace(
    speculative_config=SimpleNamespace(prompt_lookup_min=2, prompt_lookup_max=4, num_speculative_tokens=4),
    model_config=SimpleNamespace(max_model_len=64),
    scheduler_config=SimpleNamespace(max_num_seqs=8),
    parallel_config=SimpleNamespace(tensor_parallel_size=1),
))
print("threads", torch.get_num_threads())
"""


@pytest.mark.slow
def test_the_ngram_proposer_leaves_the_worker_its_threads() -> None:
    """Numba's OpenMP layer sets the process's OpenMP threads to those of its own: one, where a worker is pinned."""
    machine = find_machine()
    if machine.device != "cpu" or (machine.num_cpus or 1) < 2:
        pytest.skip("a worker has OpenMP threads to lose on CPUs alone")
    environment = server_environment(EngineConfig(speculative="ngram"), machine)
    told = subprocess.run(
        [serving_python(), "-c", PROPOSER], env=environment, capture_output=True, text=True, check=False
    )
    assert told.stdout.strip().endswith("threads 2"), told.stdout + told.stderr
