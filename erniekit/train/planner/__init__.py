"""Plans of training for any number of GPUs of any kind: memory, time, changes that fit, and the best layout."""
