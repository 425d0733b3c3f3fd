"""The one store, on Redis >= 6.2: keys, scripts, records, readers, blobs."""
