"""Rows and images: reading, checking, ordering, and the built-in digit grids."""
