"""Who may come: keys of cameras, tokens of those who use the API, and the names of both and of the page's users."""
