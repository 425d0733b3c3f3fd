"""Everything that is true without a cluster: model, lifecycle, engine, scheduling arithmetic, store."""
