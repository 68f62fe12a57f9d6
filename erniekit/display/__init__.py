"""Output shared by several commands: progress, tables, escaped text and HTML pages."""
