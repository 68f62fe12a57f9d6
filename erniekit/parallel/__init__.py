"""Forms of parallel training: data parallel, ZeRO, expert parallel and context parallel."""
