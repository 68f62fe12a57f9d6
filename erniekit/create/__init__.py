"""New models of a named shape, with a new tokenizer (`erniekit init`)."""
