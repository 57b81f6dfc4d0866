"""Measurements: ratios against peers or against the forward pass, taken alternately in one run."""
