"""Checks of a machine: what is installed, kernels, a training step, processes, and times (`erniekit doctor`)."""
