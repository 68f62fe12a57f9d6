"""From data files to packed rows of tokens.

The packages, each built on the ones before it: chat, media, formats, files, encode, store, load.
"""
