"""Quality of a Target: lm-eval's stock tasks, asked of the served model, with every item's outcome kept."""
