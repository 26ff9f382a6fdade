"""Looking after what is there: sets are verified, adopted, published, a store is swept."""
