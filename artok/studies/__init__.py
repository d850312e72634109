"""Studies of many models under one budget: config, budget, scheduler, results. Pages are in `artok/report`."""
