"""How a candidate is made, run, recorded and promoted: everything with an effect."""
