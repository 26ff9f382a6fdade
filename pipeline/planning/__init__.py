"""The recipe, its nodes and their keys: everything decided before something runs."""
