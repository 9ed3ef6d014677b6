"""Measurements of the product against its claims; README.md here says how each is run."""
