"""Growing: more layers, more neurons, the same function where that can be."""
