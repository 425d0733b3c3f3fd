"""Scheduling arithmetic: pure decisions about who goes first, where, and how many."""
