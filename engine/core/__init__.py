"""engine.core — see docs/ARCHITECTURE.md."""
