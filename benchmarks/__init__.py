"""The figures this project promises, measured beside plain Ray: `python -m benchmarks`."""
