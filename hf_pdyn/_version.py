"""The version, for the build and for what starts without importing the rest."""

__version__ = "0.1.0"
