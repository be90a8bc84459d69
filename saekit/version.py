"""The version of saekit, written into everything that it makes."""

__version__ = "0.1.0"
