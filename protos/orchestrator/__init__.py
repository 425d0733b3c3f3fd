"""Versions of the orchestrator contract."""
