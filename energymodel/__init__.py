"""Predict the energy of language-model inference from components measured on a real GPU."""

__version__ = "0.1.0"
