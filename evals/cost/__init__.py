"""From measured speed and a price to USD per token. Pure."""
