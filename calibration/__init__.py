"""The measurement stage: sensors, windows, micro-workloads, sweeps and the fit."""
