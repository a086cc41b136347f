"""The simulator held against figures that others measured and published."""
