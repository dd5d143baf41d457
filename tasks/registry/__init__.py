"""Registered policies: versions, champions, serving."""
