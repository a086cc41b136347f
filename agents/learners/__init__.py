"""Learners of Stable-Baselines3 and sb3-contrib as they come, compared on the same episodes."""
