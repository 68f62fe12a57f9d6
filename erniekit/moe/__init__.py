"""Mixture of experts: routing, expert computation and the interface through which parallel forms reach it."""
