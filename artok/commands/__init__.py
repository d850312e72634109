"""One file per command that is more than a call: compare, demo, plan, report."""
