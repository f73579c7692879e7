"""What phone and cloud say to each other: messages, their coding and their limits."""
