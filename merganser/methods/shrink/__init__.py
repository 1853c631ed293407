"""Shrinking: fewer layers, neurons and heads."""
