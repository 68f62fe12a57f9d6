"""How several processes train one model: data parallel, ZeRO, expert parallel, context parallel."""
