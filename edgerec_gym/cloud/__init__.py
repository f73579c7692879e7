"""The cloud: catalogue, retrieval, and pages in transit."""
