"""What every attention head and every layer of an encoder does on a whole genome database."""

from bertgeom._version import __version__

__all__ = ["__version__"]
