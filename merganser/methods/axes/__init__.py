"""Rearranging: the operations on named axes as steps."""
