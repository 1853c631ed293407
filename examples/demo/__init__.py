"""The demo of `make demo`: two fine-tuned siblings of a real encoder, merged four ways and scored."""
