"""From documents to packed rows: packing, mixtures, streams, batches."""
