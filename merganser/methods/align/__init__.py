"""Bringing the elements of one model into the order of another's."""
