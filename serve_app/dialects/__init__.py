"""One file for each API that clients speak; none knows another."""
