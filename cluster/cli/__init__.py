"""The command `her2cache`, a module a group of verbs."""
