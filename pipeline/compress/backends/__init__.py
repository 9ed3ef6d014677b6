"""What several methods share of a library that compresses."""
