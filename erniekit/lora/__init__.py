"""Low-rank adapters (LoRA): targets, layers, PEFT files, merging."""
