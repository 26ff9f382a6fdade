"""Reading Parquet: row groups as NumPy views."""
