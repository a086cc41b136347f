"""Fits link processes to recorded series, and makes series of logs of round trips."""
