"""Fits latency profiles to measured tables, and measures and imports such tables."""
