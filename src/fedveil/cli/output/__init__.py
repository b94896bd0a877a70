"""What the commands show: the console, progress bars and tables."""
