"""Mixture of experts: routing, experts, router losses, and the dispatcher that expert parallelism replaces."""
