"""The floor under the rooms: errors, atomic files, content hashes, child processes. It knows nothing of the product."""
