"""Model families, one folder each with the same file names, and what works on all of them."""
