"""What runs at a hospital: the service that holds images, ledger and keys."""
