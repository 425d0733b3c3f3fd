"""The wire contract and the modules generated from it."""
