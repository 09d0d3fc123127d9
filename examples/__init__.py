"""Demonstrations, run as `python -m examples.NAME` in the checkout."""
