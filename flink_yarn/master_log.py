"""How YARN's Java ApplicationMaster (skein) logs: into a file of its own that is rolled as ours are. Pure.

skein prints its log, and YARN has that in ``application.master.log``, which grows for as long as the application runs:
some lines for each container, and for each second in which no ResourceManager answers. There stays what Java itself
prints, should it crash.

Source: log4j 1.2's RollingFileAppender; skein sets ``skein.log.directory`` and ``skein.log.level``.
"""

from __future__ import annotations

from typing import Final

from engine.core.config import Configuration
from engine.core.log_options import LogOptions

__all__ = ["MASTER_LOG", "log4j_properties"]

#: Beside jobmanager.log in the container's folder of logs.
MASTER_LOG: Final = "applicationmaster.log"


def log4j_properties(config: Configuration) -> str:
    return f"""\
log4j.rootLogger=INFO, file
log4j.logger.com.anaconda.skein.Driver=${{skein.log.level}}
log4j.logger.com.anaconda.skein.ApplicationMaster=${{skein.log.level}}
log4j.logger.com.anaconda.skein.WebUI=${{skein.log.level}}
log4j.logger.com.anaconda.skein.shaded.org.eclipse.jetty=WARN
log4j.logger.org.apache.zookeeper=WARN
log4j.appender.file=org.apache.log4j.RollingFileAppender
log4j.appender.file.File=${{skein.log.directory}}/{MASTER_LOG}
log4j.appender.file.MaxFileSize={config.get(LogOptions.SIZE_MAX)}
log4j.appender.file.MaxBackupIndex={config.get(LogOptions.BACKUPS_MAX)}
log4j.appender.file.layout=org.apache.log4j.PatternLayout
log4j.appender.file.layout.ConversionPattern=%d{{yyyy-MM-dd HH:mm:ss,SSS}} %p %c{{2}}: %m%n
"""
