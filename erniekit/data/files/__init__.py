"""Data files: which ones an entry of the configuration names, and the records in them."""
