"""StreamExecutionEnvironment, where a PyFlink program looks for it."""

from engine.datastream.environment import StreamExecutionEnvironment

__all__ = ["StreamExecutionEnvironment"]
