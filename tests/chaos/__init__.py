"""Random faults for N minutes over a job on real YARN, HDFS and ZooKeeper, whose output must be exact:
``python -m tests.chaos --minutes 60``."""
