"""From hidden states to the loss of each position, without a [tokens, vocabulary] tensor."""
