"""Tiny models of many families, taken through every stage."""
