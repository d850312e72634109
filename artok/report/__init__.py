"""Pages from results: of runs and of studies."""
