"""Fits link processes to recorded series."""
