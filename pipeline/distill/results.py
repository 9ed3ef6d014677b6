"""What a finished distillation says: its metrics, its curve, and what its hours cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any


@dataclass(frozen=True)
class MachinePrice:
    """What an hour of this machine costs, for the books of interruptions."""

    purchase_option: str = "on_demand"
    usd_per_hour: Decimal | None = None
    """None: not known; costs are then left out, never zero."""

    def usd(self, seconds: float | None) -> Decimal | None:
        """What this time costs; None where either is not known."""
        if seconds is None or self.usd_per_hour is None:
            return None
        return Decimal(str(seconds)) * self.usd_per_hour / 3600


def distill_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """MLflow metrics of a finished stage's result; what was not measured has none."""
    metrics = {
        f"distill/{name}": float(result[name])
        for name in (
            "final_loss",
            "tokens_seen",
            "num_steps",
            "tokens_per_s",
            "mfu",
            "train_wall_s",
            "train_usd",
            "num_attempts",
            "lost_s",
            "lost_steps",
            "lost_usd",
            "spot_coverage",
            "making_wall_s",
            "teacher_wall_s",
            "teacher_usd",
        )
        if result.get(name) is not None
    }
    cache = result.get("teacher_cache")
    if cache is not None:
        metrics["distill/cache/bytes_per_token"] = float(cache["bytes_per_token"])
        metrics |= {f"distill/cache/{key}": float(value) for key, value in cache["error"].items()}
    return metrics


def training_curve(result: Mapping[str, Any]) -> list[tuple[int, float]]:
    """(step, loss) of every logged point, for a metric with steps: `distill/loss`."""
    return [(int(point["step"]), float(point["loss"])) for point in result["curve"]]
