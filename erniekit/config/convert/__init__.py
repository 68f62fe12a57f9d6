"""Converts a configuration of another trainer (`erniekit config convert`)."""
