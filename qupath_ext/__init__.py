"""Deep learning for QuPath projects: reads them, writes them, and runs analyses on their slides."""

__version__ = "0.1.0"
