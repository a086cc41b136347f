"""Fits, catalogues and plots request traces."""
