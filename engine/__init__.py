"""A batch-and-stream engine for Python users: Apache Flink's model without a JVM under user code.

Users import from ``engine.datastream``, ``engine.dataset`` and ``engine.common``.
"""

__version__ = "0.1.0"
#: The Flink version whose names, REST paths and command lines this release follows.
FLINK_COMPATIBLE_VERSION = "2.3.0"
