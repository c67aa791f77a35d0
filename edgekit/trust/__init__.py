"""Trust: keys, signed envelopes, assignments, and the two sides of the TUF repository."""
