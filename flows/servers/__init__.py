"""Servers that are started and kept, and the settings that point to them."""
