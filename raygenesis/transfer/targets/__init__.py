"""Target tasks as they lie in folders: published layouts, one a file, and a user's own files."""
