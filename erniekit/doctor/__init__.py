"""Checks of a machine: installed software, kernels, a training step, processes, and speed (`erniekit doctor`)."""
