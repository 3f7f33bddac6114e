"""engine.rest — see docs/ARCHITECTURE.md."""
