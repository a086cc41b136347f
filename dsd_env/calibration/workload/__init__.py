"""Imports, fits, catalogues and plots request traces."""
