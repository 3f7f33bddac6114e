"""engine.graph — see docs/ARCHITECTURE.md."""
