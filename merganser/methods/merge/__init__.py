"""Merging: several checkpoints of one layout become one."""
