"""Foundations of compiled code: kernels, arrays, worker threads, random numbers, selection."""
