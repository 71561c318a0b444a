"""Layers whose labels are spread over ranks."""
