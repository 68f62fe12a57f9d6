"""The keys of other trainers' configurations, as tables: what each one is called here, or why it has no place."""
