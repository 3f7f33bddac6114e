"""engine.state — keyed and operator state, timers, key groups; see docs/ARCHITECTURE.md."""
