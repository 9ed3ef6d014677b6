"""Distillation: a smaller student learns from the base model, on machines that may be taken away at any time."""
