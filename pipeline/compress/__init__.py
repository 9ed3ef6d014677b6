"""Making a cheaper checkpoint: one file per method, each with its `METHOD` (see `pipeline.compress.registry`)."""
