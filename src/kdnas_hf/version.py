"""The version of kdnas_hf: the only place where it is written."""

__version__ = "0.1.0.dev0"
