"""Looking after projects: what is wrong with one, where its slides went, and whether this machine can do the work."""
