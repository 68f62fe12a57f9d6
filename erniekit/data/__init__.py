"""From data files to packed rows of tokens: formats, templates, pictures, encoding, packing, loading."""
