"""What people look at: the report of many runs, plots of one run, pictures of objectives, films of agents."""
