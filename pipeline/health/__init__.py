"""The health check: a candidate beside its base on a little real text."""
