"""The command line: a table of verbs, Hydra, exit codes; one file per verb."""
