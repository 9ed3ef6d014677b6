"""Serving a checkpoint with vLLM, in a process of its own."""
