"""The cloud: catalogue, retrieval, pages on their way."""
