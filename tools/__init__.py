"""What maintainers run beside the tests and the benchmark, each as ``python -m tools.NAME``."""
