"""The parts of igllama; igllama.py at the top composes them and explains the whole."""

__version__ = "0.1.0"
