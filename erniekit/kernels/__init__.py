"""Kernels: one file each, with the plain form and faster ones that are checked against it."""
