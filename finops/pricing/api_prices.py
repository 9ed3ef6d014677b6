"""What providers ask for a model behind an API: a row to compare with, never a price of ours.

A list price has no latency objective, no share of a machine and no machine behind it; the label says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from core.errors import PriceError


@dataclass(frozen=True)
class ApiPrice:
    """What a provider asks for a model behind an API: a comparison, not a price of ours."""

    label: str
    provider: str
    model: str
    usd_per_1m_input_tokens: Decimal
    usd_per_1m_output_tokens: Decimal
    source: str


def api_list_price(model: str, provider: str | None = None) -> ApiPrice:
    """The public list price of a model (package genai-prices): no SLO goes with it.

    Raises:
        PriceError: the package is not installed, or knows no such model.

    """
    try:
        import genai_prices  # type: ignore[import-not-found]
    except ImportError as error:
        raise PriceError("API prices need the package genai-prices: pip install genai-prices") from error
    million = 1_000_000
    try:
        inputs, outputs = (
            genai_prices.calc_price(usage, model, provider_id=provider)
            for usage in (
                genai_prices.Usage(input_tokens=million, output_tokens=0),
                genai_prices.Usage(input_tokens=0, output_tokens=million),
            )
        )
    except LookupError as error:
        raise PriceError(f"no public API price for '{model}': {error}") from error
    return ApiPrice(
        "public API list price, no SLO",
        str(inputs.provider.id),
        str(inputs.model.id),
        inputs.input_price,
        outputs.output_price,
        f"genai-prices {genai_prices.__version__}",
    )
