"""engine.state — see docs/ARCHITECTURE.md."""
