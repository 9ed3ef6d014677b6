"""A sweep knows the number of its candidates before its first job."""

import pytest

from core.errors import ConfigError
from pipeline.cli.sweep import num_candidates


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["quant=none,int8,gptq,awq"], 3),
        (["quant=none"], 1),
        (["quant=int8"], 1),
        (["quant=int8,gptq", "engine.kv_cache_dtype=auto,fp8"], 4),
        (["quant=none,int8", "calib.seed=range(0,3)"], 3),
        (["quant=none,int8", "distill=depth-half"], 2),  # the student without compression is a candidate too
        (["distill=none,depth-half", "quant=none,int8"], 4),
        (["++gate.delta_points=2,3", "quant=int8"], 2),  # too many: stricter, never looser
        (["suite.tasks=[piqa,sciq]", "quant=int8,awq"], 2),
        ([], 1),
    ],
)
def test_candidates_of_a_sweep(overrides: list[str], expected: int) -> None:
    assert num_candidates(overrides) == expected


def test_an_override_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(ConfigError):
        num_candidates(["quant=[int8"])
