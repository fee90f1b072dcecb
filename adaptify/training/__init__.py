"""Fitting gates and choosing thresholds: feature caches, linear training, calibration."""
