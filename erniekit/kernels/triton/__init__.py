"""Triton kernels and the functions that launch them, over tensors of any framework. Imported only if chosen."""
