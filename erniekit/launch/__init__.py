"""Starting the processes of a run on this machine, and supervising them until all have ended."""
