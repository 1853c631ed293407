"""Experts: dense models to mixtures of experts and back, experts split and averaged."""
