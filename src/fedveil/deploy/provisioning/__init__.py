"""Start-up kits, their files and certificates."""
