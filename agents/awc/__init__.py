"""Adaptive window control: sweeps of static choices over many conditions, and the network trained on them."""
