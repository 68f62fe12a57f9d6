"""Hooks around the steps of training, one concern per file. `erniekit.train.build_hooks` states their order."""
