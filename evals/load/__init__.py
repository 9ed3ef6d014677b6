"""Speed under load: vLLM's own benchmark client against a served model.

`scenario` says what to measure, `job` turns it into the client's arguments, `client` runs in the serving environment,
`run` drives it, `summary` turns its raw files into figures. `scenario`, `job`, `plan` and `summary` are pure.
"""
