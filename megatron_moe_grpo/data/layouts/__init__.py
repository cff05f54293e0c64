"""How others name a row's columns, turned into the names of `data/schema.py`."""
