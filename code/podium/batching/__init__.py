"""Data sets and collators, one module a batch layout."""
