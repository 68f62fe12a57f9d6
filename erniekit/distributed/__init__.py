"""Groups of processes, the collectives between them, and the watchdog over both."""
