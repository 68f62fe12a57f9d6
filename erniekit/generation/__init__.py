"""Generation: loading a model, generating tokens, decoding and parsing answers."""
