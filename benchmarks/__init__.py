"""The budgets of the design, measured: one file a row, `make bench` prints the table."""
