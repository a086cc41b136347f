"""Training, evaluating and exporting learned schedulers; used from a checkout, never installed."""
