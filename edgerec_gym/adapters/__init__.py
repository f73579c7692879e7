"""Views of the environments for other libraries."""
