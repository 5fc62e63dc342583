"""Data sets: read from their files (`sources`), then held on the device as tensors and augmented there (`batches`)."""
