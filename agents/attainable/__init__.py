"""The attainable ceiling: a policy that knows the ground truth's equations but sees only observations."""
