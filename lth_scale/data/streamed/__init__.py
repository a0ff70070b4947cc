"""Data sets too large for memory: encoded images, read by offset from indexed WebDataset shards."""
