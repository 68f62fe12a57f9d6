"""From data files to packed rows of tokens: one room a subject, each building on those before it: chat, media,
formats, files, encode, store, load."""
