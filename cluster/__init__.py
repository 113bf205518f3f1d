"""Everything that runs on Ray, and the command line: the composition root."""
