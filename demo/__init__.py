"""What a person looks at of gatestream: the page, the desktop window, the pictures of the guides."""
