"""`slmx s3 …`: files and buckets."""
