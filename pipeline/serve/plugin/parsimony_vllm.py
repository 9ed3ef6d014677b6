"""A vLLM plug-in for CPUs: INT4 and INT8 on processors without a right kernel for them, and waiting without spinning.

vLLM 0.32 multiplies INT4 weights on a CPU only with AVX-512, and INT8 weights with 16-bit activations on no CPU at all.
There this kernel turns the weights back into the activations' type once, as the model loads. The answers are those of
the quantized weights; memory and speed are those of plain ones. Native GPTQ and AWQ checkpoints may then also be served
in float32.

oneDNN's INT8 products (W8A8) are wrong on x86 processors without VNNI: two products of 8 bits are added in 16 bits, and
what does not fit is cut off (https://oneapi-src.github.io/oneDNN/dev_guide_int8_computations.html). Codes near the ends
of their range are hit most. Where a trial product shows it, the same codes are multiplied in float32.

A vLLM process that waits for another one's message spins for a second before it sleeps. On a small machine that takes a
sixth of the worker's time (measured on 2 cores), so there it sleeps after a few milliseconds.

For the noise floor (`parsimony noise`) it changes the last digits of what every normalization gives, as another order
of sums does. INT8 products are exact, so no other kernel of this server would.

Found by vLLM through the entry point beside this file
(`vllm.general_plugins`), because the server gets this folder in its PYTHONPATH. It runs in the serving environment and
imports nothing else of this product.
"""

import os
import platform

VLLM_INT4_KERNEL = "CPUWNA16LinearKernel"
VLLM_INT8_KERNEL = "CPUInt8ScaledMMLinearKernel"
DISABLED = "VLLM_DISABLED_KERNELS"
LAST_DIGITS = "PARSIMONY_LAST_DIGITS"
"""Set by the second path of the noise floor, and by nothing else."""
STEP = 2.0**-22
"""Relative change of a float32: what the order of some hundred additions changes."""
ONE_IN = 4096
"""Of so many 16-bit values one is the other neighbor of what was rounded: STEP over their spacing, about."""
SMALL_MACHINE_CPUS = 4
SPIN_S = 0.002
"""Of waiting for a message, on a small machine."""


def register() -> None:
    """Add our kernels behind vLLM's own, and switch vLLM's own off where their products are missing or wrong."""
    import torch
    from vllm.platforms import current_platform
    from vllm.platforms.interface import PlatformEnum

    if not current_platform.is_cpu():
        return
    current_platform.import_kernels()
    from vllm.model_executor.kernels.linear import register_linear_kernel

    if not hasattr(torch.ops._C, "cpu_gemm_wna16"):
        disable(VLLM_INT4_KERNEL)
    register_linear_kernel(kernel_class(), PlatformEnum.CPU, "mp")
    if int8_products_saturate():
        disable(VLLM_INT8_KERNEL)
        register_linear_kernel(int8_kernel_class(), PlatformEnum.CPU, "int8")
    allow_float32()
    if os.environ.get(LAST_DIGITS):
        change_last_digits()
    if (os.cpu_count() or 1) <= SMALL_MACHINE_CPUS:
        spin_less()


def disable(kernel: str) -> None:
    """Keep vLLM from choosing a kernel of its own."""
    listed = [name for name in os.environ.get(DISABLED, "").split(",") if name]
    if kernel not in listed:
        os.environ[DISABLED] = ",".join([*listed, kernel])


def int8_products_saturate() -> bool:
    """Whether vLLM's W8A8 product, tried on the largest codes, comes out wrong on this processor."""
    import torch
    from vllm import _custom_ops as ops

    if platform.machine() != "x86_64" or not hasattr(torch.ops._C, "create_onednn_scaled_mm_handler"):
        return False
    rows, columns = 32, 64
    codes = torch.full((rows, columns), 127, dtype=torch.int8).t()
    scales = torch.ones(rows, 1)
    handler = ops.create_onednn_scaled_mm(codes, scales, torch.float32, True, False, 1)
    asked, answer = torch.full((2, columns), 127, dtype=torch.int8), torch.empty(2, rows)
    ops.onednn_scaled_mm(handler, asked, answer, torch.ones(2, 1), None, None, None)
    return not torch.equal(answer, torch.full_like(answer, 127.0 * 127.0 * columns))


def change_last_digits() -> None:
    """Round what every RMSNorm gives otherwise: each value alone, so that an answer depends on nothing beside it."""
    import torch
    from vllm.model_executor.layers.layernorm import RMSNorm

    plain = RMSNorm.forward

    def moved(x: torch.Tensor) -> torch.Tensor:
        columns = torch.arange(x.shape[-1])
        if x.dtype == torch.float32:
            return x * (1 + STEP * (2.0 * (columns * 40503 % 7 % 2) - 1))
        hashed = x.view(torch.int16).int() * 40503 + columns.int() * 30011
        return torch.where(hashed % ONE_IN == 0, x * (1 + 2 * torch.finfo(x.dtype).eps), x)

    def forward(self: RMSNorm, *args: object, **settings: object) -> object:
        found = plain(self, *args, **settings)
        return (moved(found[0]), *found[1:]) if isinstance(found, tuple) else moved(found)

    RMSNorm.forward = forward


def spin_less() -> None:
    """Let a process that waits for another one's message sleep soon, so that the worker has the cores."""
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    plain = SpinCondition.__init__

    def short(self: SpinCondition, *args: object, **settings: object) -> None:
        plain(self, *args, **settings)
        self.busy_loop_s = min(self.busy_loop_s, SPIN_S)

    SpinCondition.__init__ = short


def allow_float32() -> None:
    """Let native GPTQ and AWQ checkpoints be served in float32: what a processor without bfloat16 is fastest in."""
    import torch
    from vllm.model_executor.layers.quantization.auto_awq import AutoAWQConfig
    from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig

    for config in (AutoGPTQConfig, AutoAWQConfig):
        known = list(config.get_supported_act_dtypes())
        config.get_supported_act_dtypes = classmethod(lambda cls, known=known: [*known, torch.float32])


def kernel_class() -> type:
    """The kernel's class, made after vLLM is imported."""
    import torch
    from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel, MPLinearLayerConfig
    from vllm.model_executor.layers.quantization.utils.quant_utils import unpack_quantized_values_into_int32
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.scalar_type import scalar_types

    supported = (scalar_types.uint4, scalar_types.uint4b8, scalar_types.uint8, scalar_types.uint8b128)

    class DequantizedLinearKernel(MPLinearKernel):  # type: ignore[misc]
        """Weights are turned back into the activations' type as the model loads."""

        @classmethod
        def get_min_capability(cls) -> int:
            return -1

        @classmethod
        def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
            if c.weight_type in supported:
                return True, None
            return False, f"weight type {c.weight_type} is not one of {', '.join(map(str, supported))}"

        def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
            packed, scales, zeros = self._get_weight_params(layer)
            kind = self.config.weight_type
            codes = unpack_quantized_values_into_int32(packed.data, kind, packed.packed_dim)
            codes = codes if packed.output_dim == 0 else codes.t()  # (rows, columns)
            codes = codes[:, : self.config.partition_weight_shape[0]]
            scale = scales.data if scales.output_dim == 0 else scales.data.t()  # (rows, groups)
            scale = scale.reshape(codes.shape[0], -1).float()
            width = codes.shape[1] // scale.shape[1]
            if self.config.zero_points and zeros is not None:
                offset = unpack_quantized_values_into_int32(zeros.data, kind, zeros.packed_dim)
                offset = (offset if zeros.output_dim == 0 else offset.t())[: codes.shape[0]].float()
                offset = offset.repeat_interleave(width, dim=1)
            else:
                offset = torch.tensor(float(kind.bias))
            dense = (codes.float() - offset) * scale.repeat_interleave(width, dim=1)
            layer.weight = torch.nn.Parameter(dense.to(self.config.act_type), requires_grad=False)
            for name in (self.w_q_name, self.w_s_name, self.w_zp_name):
                if name is not None and getattr(layer, name, None) is not None:
                    delattr(layer, name)
            dispatch_cpu_unquantized_gemm(layer, remove_weight=True)

        def apply_weights(
            self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
        ) -> torch.Tensor:
            return layer.cpu_linear(x, layer.weight, bias)

    return DequantizedLinearKernel


def int8_kernel_class() -> type:
    """The W8A8 kernel's class, made after vLLM is imported."""
    import torch
    from vllm import _custom_ops as ops
    from vllm.model_executor.kernels.linear import CPUInt8ScaledMMLinearKernel
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    class ExactInt8LinearKernel(CPUInt8ScaledMMLinearKernel):  # type: ignore[misc]
        """vLLM's own codes and scales; the codes are multiplied in float32, which holds them and their sums."""

        def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
            codes = getattr(layer, self.layer_param_names[0]).data.float()  # (rows, columns)
            self.process_weights_for_onednn(layer)  # brings the scales into form, and takes the weights away
            self.dnnl_handler = None
            layer.weight = torch.nn.Parameter(codes, requires_grad=False)
            dispatch_cpu_unquantized_gemm(layer, remove_weight=True)

        def apply_weights(
            self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
        ) -> torch.Tensor:
            tokens = x.reshape(-1, x.shape[-1])
            _, scale, static_scale, static_zero, _ = self._get_layer_params(layer)
            quantized = ops.onednn_scaled_int8_quant(tokens, static_scale, static_zero, self.config.input_symmetric)
            codes, token_scale, zero = quantized
            codes = codes.float() if zero is None else codes.float() - zero
            answer = layer.cpu_linear(codes, layer.weight, None) * token_scale * scale.reshape(1, -1).float()
            answer = answer if bias is None else answer + bias
            return answer.to(x.dtype).reshape(*x.shape[:-1], -1)

    return ExactInt8LinearKernel
