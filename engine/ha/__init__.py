"""High availability: who leads, where the leader is, and what the next one has to know."""
