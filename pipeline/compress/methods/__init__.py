"""One file per compression method: its settings, its implementation, its row for the registry."""
