"""Whether a candidate is good enough, item by item, at a stated error rate. Pure."""
