"""engine.protocol — see docs/ARCHITECTURE.md."""
