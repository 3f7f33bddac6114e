"""engine.client — see docs/ARCHITECTURE.md."""
