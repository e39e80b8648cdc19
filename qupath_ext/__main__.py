"""``python -m qupath_ext``: the command line, also under torchrun."""

from qupath_ext.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main(prog_name="qupath-ext")
