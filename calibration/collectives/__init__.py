"""Collectives of several GPUs: what they take and spend, with every GPU's own energy counter.

``launch.measure`` runs ``python -m calibration.collectives`` under torchrun, one rank a GPU, and
``run`` does what ``energymodel calibrate --collectives`` asks for, on a simulated host too.
"""
