"""Predictions, metrics, intervals, slices, calibration, probes, and the audit for label leaks."""
