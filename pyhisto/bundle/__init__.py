"""A trained model: its description, its files, the loaded network, and models that others made."""
