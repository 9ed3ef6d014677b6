"""How many candidates a sweep tries, known before its first job: they share one error level."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from core.errors import ConfigError

BASELINE = ("quant", "none")


def num_candidates(overrides: Sequence[str]) -> int:
    """Candidates among the jobs of a sweep, at least 1: each combination of its values but those of the baseline.

    Where a value is computed from others, two jobs may turn out to be one candidate. A count that is too high only
    makes the gate stricter.

    >>> num_candidates(["quant=none,int8,awq", "suite.tasks=[piqa,sciq]"])
    2
    >>> num_candidates(["quant=int8,gptq", "calib.num_samples=range(0,3)", "seed=1"])
    6

    Raises:
        ConfigError: an override cannot be read.

    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    is_distilled = any(one.startswith("distill=") and one != "distill=none" for one in overrides)
    sizes: dict[str, int] = {}
    for one in parsed:
        name = str(one.key_or_group)
        values = [str(value) for value in one.sweep_string_iterator()] if one.is_sweep_override() else [""]
        if name == BASELINE[0] and not is_distilled:
            values = [value for value in values if value != BASELINE[1]]
        sizes[name] = len(values)
    return max(prod(sizes.values()), 1)
