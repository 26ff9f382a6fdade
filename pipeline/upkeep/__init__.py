"""Looking after a store: adopt, publish, sweep."""
