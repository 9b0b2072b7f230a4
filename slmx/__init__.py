"""slmx: what small language models and retrievers know, read and find, measured."""

__version__ = "0.1.0"
