"""New models of a named shape, with a tokenizer of their own (`erniekit init`)."""
