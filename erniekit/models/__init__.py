"""ERNIE 4.5 in Paddle: one device, packed rows, names of the Hub."""
