"""Weights of other libraries: one module for each format, from its arrays to ours and back."""
