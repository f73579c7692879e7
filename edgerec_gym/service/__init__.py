"""The cloud as a service: pages, sessions and models over a connection."""
