"""engine.runtime — see docs/ARCHITECTURE.md."""
