"""The command line, YARN, ZooKeeper and HDFS: all that knows a cluster manager. ``engine`` never imports this."""
