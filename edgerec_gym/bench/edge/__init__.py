"""Phone and cloud measured: parity with the environment, faults, load, and what each part is worth."""
