"""Images and videos: fetched, measured, decoded, cut into patches."""
