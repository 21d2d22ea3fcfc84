"""Drive a real inference engine for whole-model runs."""
