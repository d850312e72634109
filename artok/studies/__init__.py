"""Many models under one budget: config, budget, scheduler, results; no pictures here."""
