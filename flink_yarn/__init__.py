"""The command line, YARN, ZooKeeper and HDFS: everything that knows a cluster manager. ``engine`` never imports this."""
