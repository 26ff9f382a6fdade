"""Running what is missing, here, in other processes or on a Ray cluster, and repairing damage."""
