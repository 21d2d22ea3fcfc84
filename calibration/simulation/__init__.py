"""A GPU that does not exist, its declared truth and its faults: what a calibration is tested on."""
