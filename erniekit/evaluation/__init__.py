"""`erniekit eval`, and evaluation during training: loss, perplexity, metrics of generated answers, and reports."""
