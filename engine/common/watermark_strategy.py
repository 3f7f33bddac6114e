"""WatermarkStrategy and custom generators, where a PyFlink program looks for them."""

from engine.time.watermarks import (
    IngestionTimeAssigner,
    TimestampAssigner,
    Watermark,
    WatermarkGenerator,
    WatermarkOutput,
    WatermarkStrategy,
)

__all__ = [
    "IngestionTimeAssigner",
    "TimestampAssigner",
    "Watermark",
    "WatermarkGenerator",
    "WatermarkOutput",
    "WatermarkStrategy",
]
