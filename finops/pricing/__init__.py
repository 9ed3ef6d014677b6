"""What a machine or an API costs: the price catalog and look-ups in it."""
