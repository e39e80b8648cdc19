"""One file an analysis: slide in, path objects out, into a QuPath project."""
