"""Low-rank adapters: which modules they attach to, how they compute, how they are stored and merged."""
