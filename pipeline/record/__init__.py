"""Recording runs in MLflow, and reading them again."""
