"""The packed layout: records in about 20 % fewer bytes, for very large sets."""
