"""engine.runtime.exchange — see docs/ARCHITECTURE.md."""
