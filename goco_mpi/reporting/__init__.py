"""Finished runs as a page: what they did, what limited them, and pictures of both."""
