"""Which candidate is promoted: the gates of all tasks, the frontier, the decision. Pure."""
