"""Whole programs that use the layers together with other libraries."""
