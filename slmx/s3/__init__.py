"""Files and buckets: transfers that can be trusted."""
