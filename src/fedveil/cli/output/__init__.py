"""What the commands print: the console, progress bars and tables."""
