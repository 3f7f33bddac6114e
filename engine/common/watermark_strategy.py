"""WatermarkStrategy, where a PyFlink program looks for it."""

from engine.time.watermarks import TimestampAssigner, WatermarkStrategy

__all__ = ["TimestampAssigner", "WatermarkStrategy"]
