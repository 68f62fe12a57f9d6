"""Output for people that several commands share: progress, tables, escaped text and HTML pages."""
