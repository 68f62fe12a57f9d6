"""The keys of other trainers' configurations, as tables: the name of each one here, or why it has none."""
