"""What compiled code stands on: kernels, arrays, worker threads, random numbers, selection."""
