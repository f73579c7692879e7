"""What is measured against what; each script prints a table and writes results/NAME.json."""
