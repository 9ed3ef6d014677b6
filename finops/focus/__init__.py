"""FOCUS files: export, validation, reconciliation with a provider's bill."""
