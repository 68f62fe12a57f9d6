"""Starting the processes of a run on this machine, and looking after them until none is left."""
