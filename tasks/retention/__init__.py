"""Removing what old runs left behind: which of it may go, and its removal."""
